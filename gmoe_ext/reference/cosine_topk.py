"""Naive cosine routing, the reference the kernel is tested against."""

from __future__ import annotations

import torch
from torch import Tensor


def cosine_topk(x: Tensor, memory: Tensor, k: int, eps: float = 1e-12) -> tuple[Tensor, Tensor]:
    """Apply a softmax to the k largest cosines of each row; see :func:`gmoe_ext.ops.cosine_topk`."""
    unit_x = x / x.norm(dim=1, keepdim=True).clamp_min(eps)
    unit_memory = memory.detach() / memory.detach().norm(dim=1, keepdim=True).clamp_min(eps)
    cosine_NE = unit_x @ unit_memory.T
    # A stable descending sort keeps the lower expert first among equal cosines.
    top, index = torch.sort(cosine_NE, dim=1, descending=True, stable=True)
    return torch.softmax(top[:, :k], dim=1), index[:, :k]
