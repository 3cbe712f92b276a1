"""Random graphs for property tests: empty, isolated nodes, hubs, duplicate edges, self loops."""

from __future__ import annotations

import torch
from hypothesis import settings
from hypothesis import strategies as st

from gmoe_ext.graph import Graph

# The first call of an operator loads libraries, which no deadline per example allows for.
settings.register_profile("gmoe_ext", deadline=None)
settings.load_profile("gmoe_ext")


@st.composite
def edge_lists(draw: st.DrawFn, max_nodes: int = 12, max_edges: int = 40) -> tuple[torch.Tensor, int]:
    """An (edge_index int64 [2, M], num_nodes) pair; every odd shape of graph is drawn often."""
    num_nodes = draw(st.integers(0, max_nodes))
    if num_nodes == 0:
        return torch.empty(2, 0, dtype=torch.int64), 0
    node = st.integers(0, num_nodes - 1)
    edges = draw(st.lists(st.tuples(node, node), max_size=max_edges))
    if draw(st.booleans()):
        hub = draw(node)
        edges += [(other, hub) for other in range(num_nodes)]
    if edges and draw(st.booleans()):
        edges += draw(st.lists(st.sampled_from(edges), max_size=5))
    if draw(st.booleans()):
        edges += [(loop, loop) for loop in draw(st.lists(node, max_size=3))]
    order = draw(st.permutations(range(len(edges))))
    edge_index = torch.tensor([edges[position] for position in order], dtype=torch.int64).reshape(-1, 2).T
    return edge_index.contiguous(), num_nodes


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
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    if weighted is None:
        weighted = draw(st.booleans())
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
