"""Routing of FeatureRows by cosine, and the averages of their rows, built from operators."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..feature_rows import FeatureRows
from . import _dispatch as op
from .sparse_linear import sparse_linear


@torch.no_grad()
def cosines(x: FeatureRows, memory: Tensor, eps: float) -> Tensor:
    """Compute the cosine of each row to each embedding, [N, E]; neither gets a gradient."""
    dot_NE = sparse_linear(x, F.normalize(memory, dim=1, eps=eps))
    return dot_NE / x.norms().to(dot_NE).clamp_min(eps).unsqueeze(1)


@torch.no_grad()
def mean_rows(x: FeatureRows, gate: Tensor, index: Tensor, num_experts: int, normalize: bool, eps: float) -> Tensor:
    """Average the rows of each expert by the softmax of their gates, [E, D]; 0 for an expert without rows."""
    gate = gate.to(op.wide(gate))
    largest_E = gate.new_full((num_experts,), -torch.inf).scatter_reduce(0, index.flatten(), gate.flatten(), "amax")
    share_NE = gate.new_zeros(len(gate), num_experts)
    for choice in range(index.shape[1]):  # one at a time: a row may name an expert twice
        some_N1 = index[:, choice : choice + 1]
        share_N1 = (gate[:, choice : choice + 1] - largest_E[some_N1]).exp()
        share_NE += torch.zeros_like(share_NE).scatter_(1, some_N1, share_N1)
    total_E1 = share_NE.sum(0).unsqueeze(1)
    if normalize:
        share_NE /= x.norms().to(share_NE).clamp_min(eps).unsqueeze(1)
    return torch.where(total_E1 > 0, _columns_of_sums(x, share_NE).T / total_E1, 0.0)


def _columns_of_sums(x: FeatureRows, share_NE: Tensor) -> Tensor:
    if not op.native():
        return x.to_dense().to(share_NE).T @ share_NE
    columns = x.by_column()
    values = None if columns.values is None else columns.values.to(share_NE)
    no_gradient = (None, None, None, None)
    sums_SE: Tensor = op.call("aggregate", share_NE, columns.offsets, columns.rows, values, *no_gradient)
    return sums_SE if x.dense is None else torch.cat([sums_SE, x.dense.to(sums_SE).T @ share_NE])
