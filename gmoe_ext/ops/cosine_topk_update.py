"""cosine_topk_update: route rows and update the memory in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..feature_rows import FeatureRows, Features
from . import _dispatch as op
from .cosine_topk import backward, cosine_topk, expect_routing, setup_context
from .memory_update import memory_update


def cosine_topk_update(
    x: Features, memory: Tensor, k: int, rate: float = 0.9, normalize: bool = True, eps: float = 1e-12
) -> tuple[Tensor, Tensor, Tensor]:
    """Route each row to its k nearest expert embeddings, and move these towards their rows.

    Equals :func:`cosine_topk` followed by :func:`memory_update` on its result (RbM, eqs. 3 and 4), but reads x once.
    Both are limited by memory bandwidth, so this nearly halves the time of a router's training step. All rows of a
    batch are routed by the old embeddings.

    Args:
        x: [N, D] rows to route, float32 or bfloat16 (float64 in tests), or FeatureRows.
        memory: [E, D] embeddings that route, of x's dtype; not modified.
        k: experts per row, 1 <= k <= E.
        rate: share of the old direction, in [0, 1].
        normalize: average the directions of rows; False averages the rows as they are.
        eps: smallest norm.

    Returns:
        gate [N, k] and index [N, k] int64 as from cosine_topk, and the new memory [E, D].

    Raises:
        ValueError: shapes or devices do not fit, k is out of [1, E], or rate out of [0, 1].
        TypeError: dtypes are not floating or differ.

    Gradients: x, through gate, unless it is FeatureRows.

    Deterministic: yes, bit for bit, for any number of threads.

    Examples:
        >>> gate, index, memory = cosine_topk_update(torch.ones(1, 4), torch.eye(4), k=2, rate=0.5)
        >>> index.tolist(), memory[0].tolist()
        ([[0, 1]], [0.75, 0.25, 0.25, 0.25])
    """
    name = "cosine_topk_update"
    expect_routing(name, x, memory, k)
    op.expect(0 <= rate <= 1, name, "rate", "in [0, 1]", rate)
    if isinstance(x, FeatureRows):
        gate, index = cosine_topk(x, memory, k, eps)
        return gate, index, memory_update(memory, x, gate, index, rate, normalize, eps)
    if not op.native():
        return reference.cosine_topk_update(x, memory, k, rate, normalize, eps)
    gate, index, new_memory = op.call(name, x, memory, k, rate, normalize, eps)
    return gate, index, new_memory


def _fake(x: Tensor, memory: Tensor, k: int, rate: float, normalize: bool, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    rows = x.shape[0]
    return x.new_empty(rows, k), x.new_empty(rows, k, dtype=torch.int64), memory.new_empty(memory.shape)


# As in cosine_topk and memory_update: ties and the averaging step must not depend on the precision.
op.register("cosine_topk_update", _fake, backward=backward, setup_context=setup_context, autocast="float32")
