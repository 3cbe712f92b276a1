"""Naive moving average of expert embeddings, the reference the kernel is tested against."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def memory_update(
    memory: Tensor,
    x: Tensor,
    gate: Tensor,
    index: Tensor,
    rate: float = 0.9,
    normalize: bool = True,
    eps: float = 1e-12,
) -> Tensor:
    """Move each expert embedding towards the rows routed to it; see :func:`gmoe_ext.ops.memory_update`."""
    unit_x = x / x.norm(dim=1, keepdim=True).clamp_min(eps) if normalize else x
    mean = torch.zeros_like(memory)
    for expert in range(memory.shape[0]):
        row, choice = torch.nonzero(index == expert, as_tuple=True)
        mean[expert] = torch.softmax(gate[row, choice], dim=0) @ unit_x[row]
    direction: Tensor = memory / memory.norm(dim=1, keepdim=True).clamp_min(eps)
    return rate * direction + (1 - rate) * mean
