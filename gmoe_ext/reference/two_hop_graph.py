"""Two-hop neighbourhoods: list every path j -> m -> i and keep the first of each pair (i, j)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..graph import Graph
from .aggregate import destinations


def two_hop_graph(graph: Graph, exclude_self: bool = True, exclude_one_hop: bool = True) -> Graph:
    """Build the coalesced two-hop graph; see :func:`gmoe_ext.ops.two_hop_graph`."""
    num_nodes = graph.num_nodes
    row_M, middle_M = destinations(graph), graph.columns.long()
    first_P, second_P = _paths(graph.offsets, middle_M)
    row_P, middle_P, column_P = row_M[second_P], middle_M[second_P], middle_M[first_P]
    key_P = row_P * num_nodes + column_P

    keep_P = torch.ones_like(key_P, dtype=torch.bool)
    if exclude_self:
        keep_P &= row_P != column_P
    if exclude_one_hop:
        keep_P &= ~torch.isin(key_P, row_M * num_nodes + middle_M)
    kept = keep_P.nonzero().squeeze(1)

    # Sort by (row, column), lowest middle node first; stable sorts keep parallel edges in edge order.
    kept = kept[torch.argsort(middle_P[kept], stable=True)]
    kept = kept[torch.argsort(key_P[kept], stable=True)]
    key = key_P[kept]
    is_first = torch.ones_like(key, dtype=torch.bool)
    is_first[1:] = key[1:] != key[:-1]
    kept = kept[is_first]

    offsets = torch.zeros_like(graph.offsets)
    torch.cumsum(torch.bincount(row_P[kept], minlength=num_nodes), 0, out=offsets[1:])
    edge_type, num_types = None, 0
    if graph.edge_type is not None:
        num_types = graph.num_edge_types**2
        pair_type = graph.edge_type[first_P[kept]].long() * graph.num_edge_types + graph.edge_type[second_P[kept]]
        edge_type = pair_type.to(graph.columns.dtype)
    return Graph(
        num_nodes, offsets, column_P[kept].to(graph.columns.dtype), edge_type=edge_type, num_edge_types=num_types
    )


def _paths(offsets: Tensor, middle_M: Tensor) -> tuple[Tensor, Tensor]:
    """List all paths j -> m -> i as edge positions (edge j -> m, edge m -> i), ordered by the second edge."""
    start_M = offsets[middle_M]
    count_M = offsets[middle_M + 1] - start_M
    second_P = torch.repeat_interleave(torch.arange(middle_M.numel(), device=offsets.device), count_M)
    path_before_M = count_M.cumsum(0) - count_M
    first_P = torch.arange(second_P.numel(), device=offsets.device) + (start_M - path_before_M)[second_P]
    return first_P, second_P
