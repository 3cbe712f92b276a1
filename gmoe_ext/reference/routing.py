"""Naive routing and the moving average of the memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..feature_rows import Features, dense_of
from .edges import accumulator


def cosine_topk(x: Features, memory: Tensor, k: int, eps: float = 1e-12) -> tuple[Tensor, Tensor]:
    """Apply a softmax to the k largest cosines of each row; see :func:`gmoe_ext.ops.cosine_topk`."""
    x = dense_of(x)
    unit_x = x / x.norm(dim=1, keepdim=True).clamp_min(eps)
    unit_memory = memory.detach() / memory.detach().norm(dim=1, keepdim=True).clamp_min(eps)
    return topk_softmax(unit_x @ unit_memory.T, k)


def cosine_topk_update(
    x: Features, memory: Tensor, k: int, rate: float = 0.9, normalize: bool = True, eps: float = 1e-12
) -> tuple[Tensor, Tensor, Tensor]:
    """Route, then move the memory; see :func:`gmoe_ext.ops.cosine_topk_update`."""
    gate, index = cosine_topk(x, memory, k, eps)
    return gate, index, memory_update(memory, x, gate, index, rate, normalize, eps)


def topk_softmax(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Apply a softmax to the k largest logits of each row; see :func:`gmoe_ext.ops.topk_softmax`."""
    # A stable descending sort keeps the lower expert first among equal logits and ranks NaN highest.
    top, index = torch.sort(logits, dim=1, descending=True, stable=True)
    return torch.softmax(top[:, :k], dim=1), index[:, :k].contiguous()


def noisy_topk(clean: Tensor, sigma: Tensor, noise: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Route by noisy logits and sum gates and chances per expert; see :func:`gmoe_ext.ops.noisy_topk`."""
    dtype = clean.dtype
    clean, sigma, noise = accumulator(clean), accumulator(sigma), accumulator(noise.detach())
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


def memory_update(
    memory: Tensor,
    x: Features,
    gate: Tensor,
    index: Tensor,
    rate: float = 0.9,
    normalize: bool = True,
    eps: float = 1e-12,
) -> Tensor:
    """Move each expert embedding towards the rows routed to it; see :func:`gmoe_ext.ops.memory_update`."""
    memory, x, gate = memory.detach(), dense_of(x).detach(), gate.detach()
    unit_x = x / x.norm(dim=1, keepdim=True).clamp_min(eps) if normalize else x
    mean = torch.zeros_like(memory)
    for expert in range(memory.shape[0]):
        row, choice = torch.nonzero(index == expert, as_tuple=True)
        mean[expert] = torch.softmax(gate[row, choice], dim=0) @ unit_x[row]
    direction: Tensor = memory / memory.norm(dim=1, keepdim=True).clamp_min(eps)
    return rate * direction + (1 - rate) * mean
