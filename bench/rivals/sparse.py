"""Weighted sums over neighbours without the operator. N nodes, M edges, D features."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gmoe_ext import Graph


def csr(graph: Graph) -> Tensor:
    """The graph as a torch CSR matrix; int32 indices, which MKL takes without a copy."""
    assert graph.weight is not None
    offsets = graph.offsets.to(graph.columns.dtype)
    size = graph.num_nodes, graph.num_nodes
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(offsets, graph.columns, graph.weight, size, check_invariants=False)


def multiply(matrix: Tensor, x: Tensor) -> Tensor:
    """torch.sparse.mm of CSR: MKL."""
    return torch.sparse.mm(matrix, x)


def multiply_sum(matrix: Tensor, x: Tensor) -> Tensor:
    """torch.sparse.mm with reduce 'sum': torch's own kernel."""
    return torch.sparse.mm(matrix, x, "sum")


def index_add(graph: Graph) -> Callable[[Tensor], Tensor]:
    """Gather, weigh, index_add_; the edge list is made beforehand."""
    assert graph.weight is not None
    source_M, target_M = graph.edge_index()
    weight_M1 = graph.weight.unsqueeze(1)

    def run(x: Tensor) -> Tensor:
        message_MD = x.index_select(0, source_M) * weight_M1
        return x.new_zeros(graph.num_nodes, x.shape[1]).index_add_(0, target_M, message_MD)

    return run


def scatter(graph: Graph) -> Callable[[Tensor], Tensor]:
    """torch_scatter.scatter over the messages; ModuleNotFoundError where it is not installed."""
    from torch_scatter import scatter as scatter_sum

    assert graph.weight is not None
    source_M, target_M = graph.edge_index()
    weight_M1 = graph.weight.unsqueeze(1)

    def run(x: Tensor) -> Tensor:
        message_MD = x.index_select(0, source_M) * weight_M1
        return scatter_sum(message_MD, target_M, dim=0, dim_size=graph.num_nodes, reduce="sum")

    return run
