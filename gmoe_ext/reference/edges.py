"""Naive sums over edges: gather, weight, index_add."""

from __future__ import annotations

import torch
from torch import Tensor

from ..graph import Graph


def aggregate(graph: Graph, x: Tensor, hops: int = 1) -> Tensor:
    """Compute A x, or A (A x) for two hops; see :func:`gmoe_ext.ops.aggregate`."""
    columns, rows = graph.columns.long(), graph.rows.long()
    y = x
    for _ in range(hops):
        message_MD = accumulator(y)[columns]
        if graph.weight is not None:
            message_MD = message_MD * graph.weight.to(message_MD.dtype)[:, None]
        y = message_MD.new_zeros(graph.num_nodes, x.shape[1]).index_add(0, rows, message_MD).to(x.dtype)
    return y


def accumulator(x: Tensor) -> Tensor:
    """Convert x to the dtype sums are kept in: float32 for half types, else its own."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def edge_aggregate(graph: Graph, x: Tensor, edge_table: Tensor) -> Tensor:
    """Sum w_ij relu(x_j + edge_table[type_ij]) over in-neighbours j; see :func:`gmoe_ext.ops.edge_aggregate`."""
    if graph.edge_type is None:
        raise ValueError("gmoe::edge_aggregate: expected 'graph' with edge types, got one without")
    message_MD = torch.relu(accumulator(x)[graph.columns.long()] + accumulator(edge_table)[graph.edge_type.long()])
    if graph.weight is not None:
        message_MD = message_MD * graph.weight.to(message_MD.dtype)[:, None]
    y_ND = message_MD.new_zeros(graph.num_nodes, x.shape[1]).index_add(0, graph.rows.long(), message_MD)
    return y_ND.to(x.dtype)


def routed_edge_aggregate(graph: Graph, x: Tensor, edge_table: Tensor, index: Tensor, first_expert: int = 0) -> Tensor:
    """Apply edge_aggregate with each slot's own expert; see :func:`gmoe_ext.ops.routed_edge_aggregate`."""
    y_NKD = x.new_zeros(*index.shape, x.shape[-1])
    for expert, table_TD in enumerate(edge_table):
        y_ND = edge_aggregate(graph, x if x.dim() == 2 else x[expert], table_TD)
        chosen_NK = index == expert + first_expert
        y_NKD = torch.where(chosen_NK[:, :, None], y_ND[:, None, :], y_NKD)
    return y_NKD


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
