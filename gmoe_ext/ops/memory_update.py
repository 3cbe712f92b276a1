"""memory_update: the moving average that keeps each expert embedding near the rows routed to it."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from . import _dispatch as op


def memory_update(
    memory: Tensor,
    x: Tensor,
    gate: Tensor,
    index: Tensor,
    rate: float = 0.9,
    normalize: bool = True,
    eps: float = 1e-12,
) -> Tensor:
    """Move each expert embedding towards the mean of the rows routed to it.

    Q_e <- rate Q_e / |Q_e| + (1 - rate) sum_j a_ej x_j / |x_j|,
    a_e = softmax of the gates of the slots routed to e   (RbM, eq. 4; rows normalised as the published code does)

    Args:
        memory: [E, D] embeddings, float32 or bfloat16 (float64 in tests).
        x: [N, D] the rows that were routed, same dtype as memory.
        gate: [N, k] routing weights, same dtype; any finite values, the softmax is computed safely.
        index: [N, k] int64 or int32, 0 <= index < E.
        rate: share of the old direction, in [0, 1].
        normalize: divide each row of x by its norm first.
        eps: smallest norm.

    Returns:
        The new memory [E, D]; the argument is left as it was. An expert without rows keeps its direction
        (its row becomes rate * Q_e / |Q_e|). No gradient flows through this op.

    Raises:
        ValueError: shapes do not fit each other, or rate is out of [0, 1].
        TypeError: dtypes differ, or index is no integer tensor.
        GraphIndexError: an entry of index is out of range.

    Deterministic: yes, bit for bit, for any number of threads.

    Example:
        >>> memory, gate, index = torch.eye(2), torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int64)
        >>> memory_update(memory, torch.tensor([[0.0, 3.0]]), gate, index, rate=0.75).tolist()
        [[0.75, 0.25], [0.0, 0.75]]
    """
    name = "memory_update"
    op.expect_dim(name, "memory", memory, 2, "[E, D]")
    op.expect_dim(name, "x", x, 2, "[N, D]")
    op.expect_dim(name, "gate", gate, 2, "[N, k]")
    op.expect_dtype(name, "memory", memory, op.FLOATING)
    op.expect_like(name, "x", x, "memory", memory)
    op.expect_like(name, "gate", gate, "memory", memory)
    op.expect_dtype(name, "index", index, op.INTEGER)
    op.expect_device(name, "index", index, "memory", memory)
    dim = memory.shape[1]
    op.expect(x.shape[1] == dim, name, "x", lambda: f"of shape [N, {dim}] to match 'memory'", list(x.shape))
    op.expect(
        gate.shape[0] == x.shape[0], name, "gate", lambda: f"of shape [{x.shape[0]}, k] to match 'x'", list(gate.shape)
    )
    op.expect(
        index.shape == gate.shape,
        name,
        "index",
        lambda: f"of shape {list(gate.shape)} to match 'gate'",
        list(index.shape),
    )
    op.expect(0 <= rate <= 1, name, "rate", "in [0, 1]", rate)
    if not op.native():
        op.expect_index(name, "index", index, memory.shape[0])
        return reference.memory_update(memory, x, gate, index, rate, normalize, eps)
    with torch.no_grad():
        updated: Tensor = op.call(name, memory, x, gate, index, rate, normalize, eps)
    return updated


def _fake(memory: Tensor, x: Tensor, gate: Tensor, index: Tensor, rate: float, normalize: bool, eps: float) -> Tensor:
    return memory.new_empty(memory.shape)


# Under autocast the average stays in float32: a step of (1 - rate) would be lost in bfloat16.
op.register("memory_update", _fake, autocast=torch.float32)
