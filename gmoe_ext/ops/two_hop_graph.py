"""two_hop_graph: the graph of strict two-hop neighbours."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import reference
from ..graph import Graph, expect_graph
from . import _dispatch as op
from . import _rows


def two_hop_graph(graph: Graph, exclude_self: bool = True, exclude_one_hop: bool = True) -> Graph:
    """Build the graph of strict two-hop neighbours, the neighbourhood of hop-2 experts (GMoE, section 3.2).

    Node j is an in-neighbour of node i when a path j -> m -> i exists, except j = i (exclude_self) and except a j with
    an edge j -> i of its own (exclude_one_hop). The published program keeps one parallel edge per path and, by mistake,
    tests edge ids where it means neighbours; this is the graph the paper describes.

    Time grows with the number of paths, the sum over nodes of in-degree times out-degree. On molecules the result has
    about 1.4 times the edges; on large graphs use ``aggregate(..., hops=2)``, which never builds it.

    Args:
        graph: CSR by destination, with or without edge types; weights are not used.
        exclude_self: leave out j = i.
        exclude_one_hop: leave out j that have an edge j -> i of their own.

    Returns:
        A graph with one edge per pair (j, i), columns ascending in each row, no weights. With edge types, the type of
        an edge is type(j -> m) * T + type(m -> i) along the path through the lowest m (the first of parallel edges),
        and num_edge_types is T * T, which must fit the columns' dtype (T <= 46,340 for int32). No gradient.

    Raises:
        ValueError: more edge types than fit.
        GraphIndexError: a column or an edge type of the graph is out of range.

    Deterministic: yes, exact, for any number of threads.

    Examples:
        >>> path = Graph.from_edge_index(torch.tensor([[0, 1], [1, 2]]), num_nodes=3)
        >>> two_hop_graph(path).edge_index().tolist()
        [[0], [2]]
    """
    expect_graph("gmoe::two_hop_graph", graph)
    types, most = graph.num_edge_types, math.isqrt(torch.iinfo(graph.columns.dtype).max)
    op.expect(types <= most, "two_hop_graph", "graph", f"of at most {most:,} edge types for their pairs", f"{types:,}")
    if not op.native():
        _rows.expect_valid("two_hop_graph", graph, types)
        return reference.two_hop_graph(graph, exclude_self, exclude_one_hop)
    offsets, columns, edge_type = op.call(
        "two_hop_graph", graph.offsets, graph.columns, graph.edge_type, types, exclude_self, exclude_one_hop
    )
    pair_type = None if graph.edge_type is None else edge_type
    return Graph(graph.num_nodes, offsets, columns, edge_type=pair_type, num_edge_types=types * types)


def _fake(
    offsets: Tensor, columns: Tensor, edge_type: Tensor | None, num_edge_types: int, exclude_self: bool,
    exclude_one_hop: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    num_edges = torch.library.get_ctx().new_dynamic_size()
    new_type = columns.new_empty(0 if edge_type is None else num_edges)
    return torch.empty_like(offsets), columns.new_empty(num_edges), new_type


op.register("two_hop_graph", _fake)
