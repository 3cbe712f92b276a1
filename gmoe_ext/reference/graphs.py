"""Naive two-hop neighbourhoods and random walks."""

from __future__ import annotations

import torch
from torch import Tensor

from ..graph import Graph
from ..indices import gather_ranges, row_offsets
from .dropout import shift_right, signed, splitmix64


def two_hop_graph(graph: Graph, exclude_self: bool = True, exclude_one_hop: bool = True) -> Graph:
    """Build the coalesced two-hop graph; see :func:`gmoe_ext.ops.two_hop_graph`."""
    num_nodes = graph.num_nodes
    row_M, middle_M = graph.rows.long(), graph.columns.long()
    # All paths j -> m -> i as pairs of edges (j -> m, m -> i), ordered by the second.
    paths_M = graph.degree()[middle_M]
    first_P = gather_ranges(graph.offsets[middle_M], paths_M)
    second_P = torch.repeat_interleave(paths_M)
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

    offsets = row_offsets(row_P[kept], num_nodes)
    edge_type, num_types = None, 0
    if graph.edge_type is not None:
        num_types = graph.num_edge_types**2
        pair_type = graph.edge_type[first_P[kept]].long() * graph.num_edge_types + graph.edge_type[second_P[kept]]
        edge_type = pair_type.to(graph.columns.dtype)
    return Graph(
        num_nodes, offsets, column_P[kept].to(graph.columns.dtype), edge_type=edge_type, num_edge_types=num_types
    )


def random_walk(graph: Graph, starts: Tensor, length: int, seed: int) -> Tensor:
    """Walk uniformly from each start; see :func:`gmoe_ext.ops.random_walk`."""
    node_S = starts.long()
    key_S = splitmix64(splitmix64(torch.full_like(node_S, signed(seed))) + torch.arange(node_S.numel()).to(node_S))
    walk = [node_S]
    for step in range(1, length):
        begin_S = graph.offsets[node_S]
        degree_S = graph.offsets[node_S + 1] - begin_S
        # 63 random bits modulo the degree: the bias is below degree / 2^63.
        choice_S = shift_right(splitmix64(key_S + step), 1) % degree_S.clamp_min(1)
        moves_S = degree_S > 0
        edge_S = torch.where(moves_S, begin_S + choice_S, 0)
        if graph.columns.numel():
            node_S = torch.where(moves_S, graph.columns[edge_S].long(), node_S)
        walk.append(node_S)
    return torch.stack(walk, dim=1)
