"""Naive plans, linear layers and norms of experts."""

from __future__ import annotations

import torch
from torch import Tensor

from ..feature_rows import FeatureRows
from ..indices import row_offsets
from ..plan import ExpertPlan
from .edges import accumulator


def expert_plan(index: Tensor, num_experts: int) -> ExpertPlan:
    """Group the slots of a routing by expert; see :func:`gmoe_ext.ops.expert_plan`."""
    num_rows, k = index.shape
    expert = index.reshape(-1).long()
    return ExpertPlan(row_offsets(expert, num_experts), torch.argsort(expert, stable=True), num_rows, k)


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
    for expert in range(plan.num_experts):
        slots = plan.order[int(plan.offsets[expert]) : int(plan.offsets[expert + 1])]
        rows = slots // plan.k if source is None else source.reshape(-1)[slots].long()
        part = x[rows] @ weight[expert].T
        parts.append(part if bias is None else part + bias[expert])
    grouped = torch.cat(parts) if parts else x.new_zeros(0, out_dim)
    y_NKF = x.new_zeros(num_slots, out_dim).index_copy(0, plan.order, grouped).view(plan.num_rows, plan.k, out_dim)
    return y_NKF if gate is None else (gate.unsqueeze(2) * y_NKF).sum(1)


def sparse_expert_linear(
    x: FeatureRows,
    weight: Tensor,
    bias: Tensor | None,
    index: Tensor,
    gate: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """Apply to each row the linear layers of its experts; see :func:`gmoe_ext.ops.sparse_expert_linear`."""
    x_ND = x.to_dense().to(weight.dtype)
    x_NKD = x_ND.unsqueeze(1).expand(-1, index.shape[1], -1) if x_ND.dim() == 2 else x_ND
    y_NKF = x_NKD.new_zeros(*index.shape, weight.shape[1])
    for expert in range(weight.shape[0]):
        scaled_NKD = x_NKD if scale is None else x_NKD * scale[expert]
        part = scaled_NKD @ weight[expert].T
        part = part if bias is None else part + bias[expert]
        y_NKF = torch.where((index == expert).unsqueeze(2), part, y_NKF)
    return y_NKF if gate is None else (gate.unsqueeze(2) * y_NKF).sum(1)


def sparse_linear(x: FeatureRows, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply one linear layer; see :func:`gmoe_ext.ops.sparse_linear`."""
    y_NF = x.to_dense().to(weight.dtype) @ weight.T
    return y_NF if bias is None else y_NF + bias


def expert_norm(
    y: Tensor,
    index: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    gate: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalise each slot by the statistics of its expert's slots; see :func:`gmoe_ext.ops.expert_norm`."""
    wide = accumulator(y).dtype
    out, means, variances, counts = torch.zeros_like(y, dtype=wide), [], [], []
    for expert in range(weight.shape[0]):
        row, choice = torch.nonzero(index == expert, as_tuple=True)
        slots = y[row, choice].to(wide)
        enough = len(slots) > 1
        mean = slots.mean(0) if enough else running_mean[expert].detach().to(wide)
        var = (slots - mean).square().mean(0) if enough else running_var[expert].detach().to(wide)
        normalised = (slots - mean) / torch.sqrt(var + eps) * weight[expert] + bias[expert]
        out = out.index_put((row, choice), normalised.to(wide))
        means.append(mean.detach())
        variances.append(var.detach())
        counts.append(len(slots))
    if gate is not None:
        out = (gate.unsqueeze(2) * out).sum(1)
    return out.to(y.dtype), torch.stack(means), torch.stack(variances), torch.tensor(counts, device=y.device)
