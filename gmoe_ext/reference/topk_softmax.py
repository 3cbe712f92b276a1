"""Naive top-k softmax, the reference the kernel is tested against."""

from __future__ import annotations

import torch
from torch import Tensor


def topk_softmax(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Apply a softmax to the k largest logits of each row; see :func:`gmoe_ext.ops.topk_softmax`."""
    # A stable descending sort keeps the lower expert first among equal logits and ranks NaN highest.
    top, index = torch.sort(logits, dim=1, descending=True, stable=True)
    return torch.softmax(top[:, :k], dim=1), index[:, :k].contiguous()
