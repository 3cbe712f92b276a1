"""Naive grouping of routed slots by expert, the reference the kernel is tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from ..plan import ExpertPlan


def expert_plan(index: Tensor, num_experts: int) -> ExpertPlan:
    """Group the slots of a routing by expert; see :func:`gmoe_ext.ops.expert_plan`."""
    num_rows, k = index.shape
    expert = index.reshape(-1).long()
    count = torch.bincount(expert, minlength=num_experts)
    offsets = torch.zeros(num_experts + 1, dtype=torch.int64, device=index.device)
    offsets[1:] = count.cumsum(0)
    return ExpertPlan(offsets, torch.argsort(expert, stable=True), num_rows, k)
