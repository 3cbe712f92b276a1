"""Naive sparse aggregation: gather, weight, index_add."""

from __future__ import annotations

import torch
from torch import Tensor

from ..graph import Graph


def aggregate(graph: Graph, x: Tensor, hops: int = 1) -> Tensor:
    """Compute A x, or A (A x) for two hops; see :func:`gmoe_ext.ops.aggregate`."""
    columns = graph.columns.long()
    rows = destinations(graph)
    y = x
    for _ in range(hops):
        message_MD = accumulator(y)[columns]
        if graph.weight is not None:
            message_MD = message_MD * graph.weight.to(message_MD.dtype)[:, None]
        y = message_MD.new_zeros(graph.num_nodes, x.shape[1]).index_add(0, rows, message_MD).to(x.dtype)
    return y


def destinations(graph: Graph) -> Tensor:
    """Return the destination of each edge, int64 [M]: row i repeated once per edge."""
    node = torch.arange(graph.num_nodes, device=graph.offsets.device)
    return torch.repeat_interleave(node, graph.offsets.diff())


def accumulator(x: Tensor) -> Tensor:
    """Convert x to the dtype sums are kept in: float32 for half types, else its own."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
