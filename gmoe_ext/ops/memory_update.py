"""memory_update: moving average that keeps expert embeddings near the rows routed to them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import reference
from ..feature_rows import FeatureRows, Features
from . import _dispatch as op
from . import _sparse_routing, _sparse_rows


def memory_update(
    memory: Tensor,
    x: Features,
    gate: Tensor,
    index: Tensor,
    rate: float = 0.9,
    normalize: bool = True,
    eps: float = 1e-12,
) -> Tensor:
    """Move each expert embedding towards the mean of the rows routed to it.

    RbM, eq. 4, with sums over the slots s of expert e and rows normalised as in the published code:

        a_s = exp(gate_s) / sum_t exp(gate_t)
        m_e = sum_s a_s x_row(s) / max(|x_row(s)|, eps)
        Q_e <- rate Q_e / max(|Q_e|, eps) + (1 - rate) m_e

    The result is not normalised again: routing normalises it before every use.

    Args:
        memory: [E, D] embeddings, float32 or bfloat16 (float64 in tests); not modified.
        x: [N, D] the rows that were routed, same dtype as memory, or FeatureRows.
        gate: [N, k] routing weights, same dtype; any finite values.
        index: [N, k] int64 or int32, 0 <= index < E.
        rate: share of the old direction, in [0, 1].
        normalize: divide each row of x by its norm first; False uses the row as it is, as eq. 4 is printed.
        eps: smallest norm.

    Returns:
        The new memory [E, D]. An expert without rows keeps its direction: its row becomes rate * Q_e / |Q_e|.

    Raises:
        ValueError: shapes do not fit each other, or rate is out of [0, 1].
        TypeError: dtypes differ, or index is not an integer tensor.
        GraphIndexError: an entry of index is out of range.

    Gradients: none; the new memory carries no gradient.

    Deterministic: yes, bit for bit, for any number of threads.

    Examples:
        >>> memory, gate, index = torch.eye(2), torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int64)
        >>> memory_update(memory, torch.tensor([[0.0, 3.0]]), gate, index, rate=0.75).tolist()
        [[0.75, 0.25], [0.0, 0.75]]
    """
    name = "memory_update"
    op.expect_dim(name, "memory", memory, 2, "[E, D]")
    op.expect_floating(name, "memory", memory, x=None if isinstance(x, FeatureRows) else x, gate=gate)
    op.expect_dtype(name, "index", index, op.INTEGER)
    op.expect_device(name, "index", index, "memory", memory)
    fits = x.dim() == 2 and x.shape[1] == memory.shape[1]
    op.expect(fits, name, "x", lambda: f"of shape [N, {memory.shape[1]}] to match 'memory'", list(x.shape))
    op.expect_shape(name, "gate", gate, (x.shape[0], "k"), "to match 'x'")
    op.expect_shape(name, "index", index, gate.shape, "to match 'gate'")
    op.expect(0 <= rate <= 1, name, "rate", "in [0, 1]", rate)
    if isinstance(x, FeatureRows) or not op.native():
        op.expect_index(name, "index", index, memory.shape[0])
    if isinstance(x, FeatureRows):
        _sparse_rows.expect_rows(name, x, memory)
        mean_ED = _sparse_routing.mean_rows(x, gate, index, memory.shape[0], normalize, eps)
        return rate * F.normalize(memory.detach(), dim=1, eps=eps) + (1 - rate) * mean_ED.to(memory.dtype)
    if not op.native():
        return reference.memory_update(memory, x, gate, index, rate, normalize, eps)
    with torch.no_grad():
        updated: Tensor = op.call(name, memory, x, gate, index, rate, normalize, eps)
    return updated


def _fake(memory: Tensor, x: Tensor, gate: Tensor, index: Tensor, rate: float, normalize: bool, eps: float) -> Tensor:
    return memory.new_empty(memory.shape)


# The average stays in float32 under autocast: bfloat16 would lose a step of (1 - rate).
op.register("memory_update", _fake, autocast="float32")
