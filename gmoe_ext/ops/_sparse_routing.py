"""Routing of FeatureRows by cosine, and the averages of their rows, built from operators."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import reference
from ..feature_rows import FeatureRows
from . import _dispatch as op
from ._sparse_rows import expect_no_addend
from .sparse_linear import sparse_linear


@torch.no_grad()
def cosines(x: FeatureRows, memory: Tensor, eps: float) -> Tensor:
    """Compute the cosine of each row to each embedding, [N, E]; neither gets a gradient."""
    expect_no_addend("cosine_topk", x)
    dot_NE = sparse_linear(x, F.normalize(memory, dim=1, eps=eps))
    return dot_NE / x.norms().to(dot_NE).clamp_min(eps).unsqueeze(1)


@torch.no_grad()
def mean_rows(x: FeatureRows, gate: Tensor, index: Tensor, num_experts: int, normalize: bool, eps: float) -> Tensor:
    """Average the rows of each expert by the softmax of their gates, [E, D]; 0 for an expert without rows."""
    expect_no_addend("memory_update", x)
    gate = gate.to(op.wide(gate))
    largest_E = gate.new_full((num_experts,), -torch.inf).scatter_reduce(0, index.flatten(), gate.flatten(), "amax")
    share_NE = gate.new_zeros(len(gate), num_experts)
    for choice in range(index.shape[1]):  # one at a time: a row may name an expert twice
        some_N1 = index[:, choice : choice + 1]
        share_N1 = (gate[:, choice : choice + 1] - largest_E[some_N1]).exp()
        share_NE += torch.zeros_like(share_NE).scatter_(1, some_N1, share_N1)
    total_E1 = _sum_rows(share_NE).T
    if normalize:
        share_NE /= x.norms().to(share_NE).clamp_min(eps).unsqueeze(1)
    mean_ES = torch.where(total_E1 > 0, _sums_by_column(x, share_NE).T / total_E1, 0.0)
    if x.dense is None:
        return mean_ES
    dense = x.dense.to(gate)
    if normalize:
        dense = dense / x.norms().to(dense).clamp_min(eps).unsqueeze(1)
    none_EP = dense.new_zeros(num_experts, x.num_dense)
    return torch.cat([mean_ES, _mean_dense(none_EP, dense, gate, index)], dim=1)


def _sum_rows(values_NE: Tensor) -> Tensor:
    """Sum a matrix over its rows, [1, E], with the same bits for any number of threads: as one row of a graph."""
    if not op.native():
        return values_NE.sum(0, keepdim=True)
    rows = torch.arange(len(values_NE), device=values_NE.device)
    offsets = torch.tensor([0, len(values_NE)], device=values_NE.device)
    sums: Tensor = op.call("aggregate", values_NE, offsets, rows, *[None] * 5)
    return sums


def _sums_by_column(x: FeatureRows, share_NE: Tensor) -> Tensor:
    """Sum each column's stored values times the shares of their rows, [S, E]."""
    columns = x.by_column()
    values = None if columns.values is None else columns.values.to(share_NE)
    if not op.native():
        each = share_NE[columns.rows] if values is None else share_NE[columns.rows] * values.unsqueeze(1)
        return torch.segment_reduce(each, "sum", offsets=columns.offsets, axis=0, initial=0.0)
    sums: Tensor = op.call("aggregate", share_NE, columns.offsets, columns.rows, values, *[None] * 4)
    return sums


def _mean_dense(none_EP: Tensor, dense_NP: Tensor, gate: Tensor, index: Tensor) -> Tensor:
    """Average dense rows by the softmax of their gates, [E, P]: an update that keeps nothing of the memory."""
    if not op.native():
        return reference.memory_update(none_EP, dense_NP, gate, index, 0.0, False)
    mean: Tensor = op.call("memory_update", none_EP, dense_NP, gate, index, 0.0, False, 1e-12)
    return mean
