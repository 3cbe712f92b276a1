"""Naive batch norm per expert, the reference the kernel is tested against."""

from __future__ import annotations

import torch
from torch import Tensor


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
    wide = torch.float32 if y.dtype == torch.bfloat16 else y.dtype
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
