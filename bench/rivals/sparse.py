"""Weighted sums over neighbours without the operator. N nodes, M edges, D features."""

from __future__ import annotations

import os
import sys
import types
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gmoe_ext import Graph


def csr(graph: Graph, dtype: torch.dtype = torch.int32) -> Tensor:
    """The graph as a torch CSR matrix; int32 indices are what MKL takes without a copy.

    The gradient of :func:`multiply_sum` needs int64: torch 2.13 sorts row * N + column in the type of the indices, and
    from 46,341 nodes on int32 overflows and the gradient is wrong.
    """
    assert graph.weight is not None
    offsets, columns = graph.offsets.to(dtype), graph.columns.to(dtype)
    size = graph.num_nodes, graph.num_nodes
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(offsets, columns, graph.weight, size, check_invariants=False)


def multiply(matrix: Tensor, x: Tensor) -> Tensor:
    """torch.sparse.mm of CSR: MKL."""
    return torch.sparse.mm(matrix, x)


def multiply_sum(matrix: Tensor, x: Tensor) -> Tensor:
    """torch.sparse.mm with reduce 'sum': torch's own kernel."""
    return torch.sparse.mm(matrix, x, "sum")


def _edge_list(graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
    assert graph.weight is not None
    return *graph.edge_index(), graph.weight.unsqueeze(1)


def index_add(graph: Graph) -> Callable[[Tensor], Tensor]:
    """Gather, weigh, index_add_; the edge list is made beforehand."""
    source_M, target_M, weight_M1 = _edge_list(graph)

    def run(x: Tensor) -> Tensor:
        message_MD = x.index_select(0, source_M) * weight_M1
        return x.new_zeros(graph.num_nodes, x.shape[1]).index_add_(0, target_M, message_MD)

    return run


def scatter(graph: Graph) -> Callable[[Tensor], Tensor]:
    """torch_scatter.scatter over the messages; ModuleNotFoundError where it is not installed."""
    from torch_scatter import scatter as scatter_sum

    source_M, target_M, weight_M1 = _edge_list(graph)

    def run(x: Tensor) -> Tensor:
        message_MD = x.index_select(0, source_M) * weight_M1
        return scatter_sum(message_MD, target_M, dim=0, dim_size=graph.num_nodes, reduce="sum")

    return run


def dgl_sum(graph: Graph, threads: int, weighted: bool) -> Callable[[Tensor], Tensor]:
    """DGL's sum over neighbours; without weights on libxsmm, its fastest kernel.

    DGL 2.1.0 (pip install --no-deps dgl) loads under a newer torch once two packages that it imports and the sum does
    not need are stood in for: their libraries are built for one version of torch each. ModuleNotFoundError without it.
    """
    os.environ.setdefault("DGLBACKEND", "pytorch")
    for package in ("dgl.graphbolt", "dgl.sparse"):
        sys.modules.setdefault(package, types.ModuleType(package))
    import dgl

    dgl.utils.set_num_threads(threads)
    source_M, target_M = graph.edge_index()
    made = dgl.graph((source_M, target_M), num_nodes=graph.num_nodes, idtype=torch.int32).formats("csc")
    if not weighted:
        return lambda x: dgl.ops.copy_u_sum(made, x)
    weight_M1 = graph.weight.unsqueeze(1)  # the edges come sorted by destination, as csc keeps them
    return lambda x: dgl.ops.u_mul_e_sum(made, x, weight_M1)
