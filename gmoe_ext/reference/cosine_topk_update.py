"""Naive routing followed by the memory update, the reference the kernel is tested against."""

from __future__ import annotations

from torch import Tensor

from .cosine_topk import cosine_topk
from .memory_update import memory_update


def cosine_topk_update(
    x: Tensor, memory: Tensor, k: int, rate: float = 0.9, normalize: bool = True, eps: float = 1e-12
) -> tuple[Tensor, Tensor, Tensor]:
    """Route, then move the memory; see :func:`gmoe_ext.ops.cosine_topk_update`."""
    gate, index = cosine_topk(x, memory, k, eps)
    return gate, index, memory_update(memory, x, gate, index, rate, normalize, eps)
