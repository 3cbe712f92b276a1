"""Naive molecule message passing: one [M, D] message tensor, then index_add."""

from __future__ import annotations

import torch
from torch import Tensor

from ..graph import Graph
from .aggregate import accumulator, destinations


def edge_aggregate(graph: Graph, x: Tensor, edge_table: Tensor) -> Tensor:
    """Sum w_ij relu(x_j + edge_table[type_ij]) over in-neighbours j; see :func:`gmoe_ext.ops.edge_aggregate`."""
    if graph.edge_type is None:
        raise ValueError("gmoe::edge_aggregate: expected 'graph' with edge types, got one without")
    message_MD = torch.relu(accumulator(x)[graph.columns.long()] + accumulator(edge_table)[graph.edge_type.long()])
    if graph.weight is not None:
        message_MD = message_MD * graph.weight.to(message_MD.dtype)[:, None]
    y_ND = message_MD.new_zeros(graph.num_nodes, x.shape[1]).index_add(0, destinations(graph), message_MD)
    return y_ND.to(x.dtype)
