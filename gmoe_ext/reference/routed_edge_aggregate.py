"""Naive routed message passing: every expert on every node, then the routed ones."""

from __future__ import annotations

import torch
from torch import Tensor

from ..graph import Graph
from .edge_aggregate import edge_aggregate


def routed_edge_aggregate(graph: Graph, x: Tensor, edge_table: Tensor, index: Tensor, first_expert: int = 0) -> Tensor:
    """Apply edge_aggregate with each slot's own expert; see :func:`gmoe_ext.ops.routed_edge_aggregate`."""
    y_NKD = x.new_zeros(*index.shape, x.shape[-1])
    for expert, table_TD in enumerate(edge_table):
        y_ND = edge_aggregate(graph, x if x.dim() == 2 else x[expert], table_TD)
        chosen_NK = index == expert + first_expert
        y_NKD = torch.where(chosen_NK[:, :, None], y_ND[:, None, :], y_NKD)
    return y_NKD
