"""Random graphs for property tests: empty, isolated nodes, hubs, duplicate edges, self loops."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st

from gmoe_ext.graph import Graph


@st.composite
def edge_lists(draw: st.DrawFn, max_nodes: int = 12, max_edges: int = 40) -> tuple[torch.Tensor, int]:
    """An (edge_index int64 [2, M], num_nodes) pair; every odd shape of graph is drawn often."""
    # Three draws in all: hypothesis takes its time for each of them.
    num_nodes = draw(st.integers(0, max_nodes))
    if num_nodes == 0:
        return torch.empty(2, 0, dtype=torch.int64), 0
    ends = np.frombuffer(draw(st.binary(max_size=2 * max_edges)), np.uint8).astype(np.int64) % num_nodes
    odd = draw(st.integers(0, 999))
    edges = ends[: len(ends) // 2 * 2].reshape(-1, 2)
    hub = np.stack([np.arange(num_nodes), np.full(num_nodes, odd % num_nodes)], 1)
    loops = np.repeat(np.arange(min(3, num_nodes)), 2).reshape(-1, 2)
    added = [part for bit, part in ((1, hub), (2, edges[:5]), (4, loops)) if odd & bit]
    edge_index = np.random.default_rng(odd).permutation(np.concatenate([edges, *added])).T
    return torch.from_numpy(np.ascontiguousarray(edge_index)), num_nodes


@st.composite
def graphs(
    draw: st.DrawFn,
    max_nodes: int = 12,
    max_edges: int = 40,
    weighted: bool | None = None,
    num_edge_types: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Graph:
    """A Graph of :func:`edge_lists`; weighted None draws either, num_edge_types > 0 gives every edge a type."""
    edge_index, num_nodes = draw(edge_lists(max_nodes, max_edges))
    num_edges = edge_index.shape[1]
    seed = draw(st.integers(0, 2**31 - 1))
    generator = torch.Generator().manual_seed(seed)
    if weighted is None:
        weighted = bool(seed & 1)
    weight = torch.rand(num_edges, generator=generator, dtype=dtype) + 0.1 if weighted else None
    kinds = torch.randint(num_edge_types, (num_edges,), generator=generator) if num_edge_types else None
    return Graph.from_edge_index(edge_index, num_nodes, weight, kinds, num_edge_types or None)


def random_graph(
    num_nodes: int,
    num_edges: int,
    seed: int = 0,
    weighted: bool = False,
    num_edge_types: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Graph:
    """A seeded graph of the wanted size, with duplicates and self loops as chance has it."""
    generator = torch.Generator().manual_seed(seed)
    if num_nodes == 0:
        num_edges = 0
    edge_index = torch.randint(max(num_nodes, 1), (2, num_edges), generator=generator)
    weight = torch.rand(num_edges, generator=generator, dtype=dtype) + 0.1 if weighted else None
    kinds = torch.randint(num_edge_types, (num_edges,), generator=generator) if num_edge_types else None
    return Graph.from_edge_index(edge_index, num_nodes, weight, kinds, num_edge_types or None).to(device)


def dense(graph: Graph) -> torch.Tensor:
    """The graph as a float64 matrix [N, N]; parallel edges add up."""
    matrix = torch.zeros(graph.num_nodes, graph.num_nodes, dtype=torch.float64)
    weight = torch.ones(graph.num_edges) if graph.weight is None else graph.weight
    return matrix.index_put((graph.rows.long(), graph.columns.long()), weight.double(), accumulate=True)


def relabelled(graph: Graph, seed: int) -> tuple[Graph, torch.Tensor]:
    """The graph with its nodes in another order, and the new id of each node; rows keep the order of their edges."""
    new_id = torch.randperm(graph.num_nodes, generator=torch.Generator().manual_seed(seed))
    edges = new_id[graph.edge_index()]
    return (
        Graph.from_edge_index(edges, graph.num_nodes, graph.weight, graph.edge_type, graph.num_edge_types or None),
        new_id,
    )
