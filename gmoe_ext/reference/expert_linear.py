"""Naive grouped linear layers, the reference the kernel is tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from ..plan import ExpertPlan


def expert_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    plan: ExpertPlan,
    gate: Tensor | None = None,
    source: Tensor | None = None,
) -> Tensor:
    """Apply to each routed row the linear layer of its expert; see :func:`gmoe_ext.ops.expert_linear`."""
    num_slots, out_dim = plan.num_rows * plan.k, weight.shape[1]
    parts = []
    for expert, slots in enumerate(torch.tensor_split(plan.order, plan.offsets[1:-1].cpu())):
        rows = slots // plan.k if source is None else source.reshape(-1)[slots].long()
        part = x[rows] @ weight[expert].T
        parts.append(part if bias is None else part + bias[expert])
    grouped = torch.cat(parts) if parts else x.new_zeros(0, out_dim)
    y_NKF = x.new_zeros(num_slots, out_dim).index_copy(0, plan.order, grouped).view(plan.num_rows, plan.k, out_dim)
    return y_NKF if gate is None else (gate.unsqueeze(2) * y_NKF).sum(1)
