"""Naive noisy top-k gate, the reference the kernel is tested against."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def noisy_topk(clean: Tensor, sigma: Tensor, noise: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Route by noisy logits and sum gates and chances per expert; see :func:`gmoe_ext.ops.noisy_topk`."""
    dtype, wide = clean.dtype, torch.float32 if clean.dtype == torch.bfloat16 else clean.dtype
    clean, sigma, noise = clean.to(wide), sigma.to(wide), noise.detach().to(wide)
    noisy = clean + noise * sigma
    # A stable descending sort keeps the lower expert first among equal logits and ranks NaN highest.
    top, order = torch.sort(noisy, dim=1, descending=True, stable=True)
    gate, index = torch.softmax(top[:, :k], dim=1), order[:, :k].contiguous()
    importance = torch.zeros_like(clean).scatter(1, index, gate).sum(0)
    if k == clean.shape[1]:
        return gate.to(dtype), index, importance, torch.full_like(importance, len(clean)).detach()
    # The k-th best of the others is the (k+1)-th of all for a chosen expert, and the k-th for the rest.
    chosen = torch.zeros_like(clean, dtype=torch.bool).scatter(1, index, True)
    threshold = torch.where(chosen, top[:, k : k + 1], top[:, k - 1 : k])
    chance = torch.erf((clean - threshold) / (sigma * math.sqrt(2.0))).add(1.0).mul(0.5)
    return gate.to(dtype), index, importance, chance.sum(0)
