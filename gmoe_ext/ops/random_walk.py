"""random_walk: uniform random walks, the same for any number of threads."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..graph import Graph, expect_graph
from . import _dispatch as op
from . import _rows

_INT64 = 1 << 63


def random_walk(graph: Graph, starts: Tensor, length: int, seed: int) -> Tensor:
    """Walk from each start to a uniformly drawn neighbour, length - 1 times.

    Step t of walk s leaves node v = walk_s(t-1) along an edge drawn from (seed, s, t) alone:

        r       = splitmix64(splitmix64(splitmix64(seed) + s) + t) >> 1
        walk_st = columns[offsets[v] + r mod degree(v)]

    Each neighbour's probability is off by less than 2^-63. Edge weights are not used, parallel edges count, and a walk
    stays on a node without neighbours.

    Args:
        graph: CSR; on an undirected graph the walks are DeepWalk's.
        starts: [S] int64 first nodes.
        length: nodes per walk, >= 1.
        seed: any integer; its low 64 bits count.

    Returns:
        walks [S, length] int64; column 0 is starts. No gradient: everything is an integer.

    Raises:
        ValueError: starts is not 1-D or length < 1.
        TypeError: starts is not int64.
        GraphIndexError: a start or a column of the graph is out of range.

    Deterministic: yes, bit for bit, for any number of threads and on every machine.

    Examples:
        >>> ring = Graph.from_edge_index(torch.tensor([[1, 2, 0], [0, 1, 2]]), num_nodes=3)
        >>> random_walk(ring, torch.tensor([0, 2]), length=3, seed=7).tolist()
        [[0, 1, 2], [2, 0, 1]]
    """
    expect_graph("gmoe::random_walk", graph)
    op.expect_dim("random_walk", "starts", starts, 1, "[S]")
    op.expect_dtype("random_walk", "starts", starts, (torch.int64,))
    op.expect_device("random_walk", "graph", graph.columns, "starts", starts)
    op.expect(length >= 1, "random_walk", "length", ">= 1", length)
    if not op.native():
        _rows.expect_valid("random_walk", graph)
        op.expect_index("random_walk", "starts", starts, graph.num_nodes)
        return reference.random_walk(graph, starts, length, seed)
    signed = (seed + _INT64) % (2 * _INT64) - _INT64
    walks: Tensor = op.call("random_walk", graph.offsets, graph.columns, starts, length, signed)
    return walks


def _fake(offsets: Tensor, columns: Tensor, starts: Tensor, length: int, seed: int) -> Tensor:
    return starts.new_empty(starts.shape[0], length)


op.register("random_walk", _fake)
