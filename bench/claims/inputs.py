"""Random inputs of the claims: rows, routings, graphs."""

from __future__ import annotations

import torch
from torch import Tensor

from gmoe_ext import Graph


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def routing(num_rows: int, num_experts: int, k: int, seed: int) -> tuple[Tensor, Tensor]:
    """(gate [N, k], index [N, k]): k different experts for each row, all alike, gates that sum to 1."""
    scores = torch.rand(num_rows, num_experts, generator=torch.Generator().manual_seed(seed))
    top, index = scores.topk(k, dim=1)
    return torch.softmax(top, dim=1), index


def power_law_graph(num_nodes: int, num_edges: int, seed: int) -> Graph:
    """GCN weights over a symmetric graph whose degrees fall off as rank^-1/2, self loops counted in num_edges.

    The ranks are dealt out at random, so that hubs lie anywhere in memory. Pairs may repeat.
    """
    generator = torch.Generator().manual_seed(seed)
    rank = torch.randperm(num_nodes, generator=generator)
    pairs = torch.rand(2, (num_edges - num_nodes) // 2, generator=generator).square()
    edges = rank[(pairs * num_nodes).long().clamp_max(num_nodes - 1)]
    edges = edges[:, edges[0] != edges[1]]
    return Graph.from_edge_index(torch.cat([edges, edges.flip(0)], dim=1), num_nodes).gcn_norm()


def uniform_graph(num_nodes: int, num_edges: int, seed: int) -> Graph:
    """Weighted rows of nearly equal length with uniform columns, made as rows: no list of edges has to be sorted."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.arange(num_nodes + 1) * num_edges // num_nodes
    columns = torch.randint(num_nodes, (num_edges,), generator=generator, dtype=torch.int32)
    return Graph(num_nodes, offsets, columns, torch.rand(num_edges, generator=generator))
