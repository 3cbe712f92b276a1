"""random_walk: uniform walks from many starts, the same for any number of threads."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..errors import GraphIndexError
from ..graph import Graph


def random_walk(graph: Graph, starts: Tensor, length: int, seed: int) -> Tensor:
    """Walk from each start to a uniformly drawn neighbour, length - 1 times.

    The node after i is one of the columns of row i, each edge as likely as any other (weights are not used); a node
    without neighbours is never left. Step t of walk s draws from splitmix64 of (seed, s, t) and of nothing else.

    Args:
        graph: CSR; on an undirected graph the walks are DeepWalk's.
        starts: [S] int64 first nodes.
        length: nodes per walk, >= 1.
        seed: any integer; its low 64 bits count.

    Returns:
        walks [S, length] int64, column 0 is starts.

    Raises:
        ValueError: starts is not 1-D or length < 1.
        TypeError: starts is not int64.
        GraphIndexError: a start or a column of the graph is out of range.

    Deterministic: yes, bit for bit, for any number of threads and on every machine.

    Example:
        >>> ring = Graph.from_edge_index(torch.tensor([[1, 2, 0], [0, 1, 2]]), num_nodes=3)
        >>> random_walk(ring, torch.tensor([0, 2]), length=3, seed=7).tolist()
        [[0, 1, 2], [2, 0, 1]]
    """
    if starts.dim() != 1:
        raise ValueError(f"gmoe::random_walk: expected 'starts' of shape [S], got {list(starts.shape)}")
    if starts.dtype != torch.int64:
        raise TypeError(f"gmoe::random_walk: expected 'starts' of dtype int64, got {starts.dtype}")
    if length < 1:
        raise ValueError(f"gmoe::random_walk: expected 'length' >= 1, got {length}")
    bad = torch.nonzero((starts < 0) | (starts >= graph.num_nodes))
    if bad.numel():
        position = int(bad[0])
        raise GraphIndexError("gmoe::random_walk", "starts", position, int(starts[position]), graph.num_nodes)
    return reference.random_walk(graph, starts, length, seed)
