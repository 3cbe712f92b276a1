"""Naive mixture over typed edges: every expert on every node, then the chosen ones, scaled, gated and summed."""

from __future__ import annotations

import torch
from torch import Tensor

from ..graph import Graph
from .routed_edge_aggregate import routed_edge_aggregate


def routed_edge_mixture(
    graph: Graph,
    x: Tensor,
    edge_table: Tensor,
    index: Tensor,
    gate: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    onto: Tensor | None = None,
    first_expert: int = 0,
) -> Tensor:
    """Sum each node's slots weighted by their gates; see :func:`gmoe_ext.ops.routed_edge_mixture`."""
    sums_NKD = routed_edge_aggregate(graph, x, edge_table, index, first_expert)
    expert_NK = index - first_expert
    given_NK = (expert_NK >= 0) & (expert_NK < edge_table.shape[0])
    if scale is not None and shift is not None and edge_table.shape[0] > 0:
        known_NK = torch.where(given_NK, expert_NK, 0)
        sums_NKD = scale[known_NK] * sums_NKD + shift[known_NK]
    y_ND = (torch.where(given_NK, gate, 0.0)[:, :, None] * sums_NKD).sum(1)
    return y_ND if onto is None else onto + y_ND
