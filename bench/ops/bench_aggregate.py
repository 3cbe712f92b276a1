"""aggregate against its pure-PyTorch reference (gather and index_add) and torch.sparse.mm."""

import pytest
import torch

from gmoe_ext import ops, reference
from gmoe_ext.graph import Graph

SIZES = [(800, 2_500, 150), (20_000, 500_000, 128), (170_000, 1_200_000, 128)]


def random_graph(num_nodes, num_edges, num_edge_types=0):
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.randint(num_nodes, (2, num_edges), generator=generator)
    edge_type = torch.randint(num_edge_types, (num_edges,), generator=generator) if num_edge_types else None
    return Graph.from_edge_index(edge_index, num_nodes, torch.rand(num_edges, generator=generator), edge_type)


def sparse_mm(graph, x):
    if not hasattr(sparse_mm, "matrix") or sparse_mm.graph is not graph:
        size = (graph.num_nodes, graph.num_nodes)
        offsets = graph.offsets.to(graph.columns.dtype)
        sparse_mm.graph, sparse_mm.matrix = graph, torch.sparse_csr_tensor(offsets, graph.columns, graph.weight, size)
    return sparse_mm.matrix @ x


@pytest.mark.parametrize(
    "implementation", [ops.aggregate, sparse_mm, reference.aggregate], ids=["native", "sparse_mm", "reference"]
)
@pytest.mark.parametrize("num_nodes,num_edges,dim", SIZES)
def test_aggregate(benchmark, implementation, num_nodes, num_edges, dim):
    graph = random_graph(num_nodes, num_edges)
    x = torch.randn(num_nodes, dim, generator=torch.Generator().manual_seed(0))
    benchmark.group = f"aggregate {num_nodes} nodes, {num_edges} edges, D={dim}"
    benchmark(implementation, graph, x)


@pytest.mark.parametrize("implementation", [ops.aggregate, reference.aggregate], ids=["native", "reference"])
@pytest.mark.parametrize("num_nodes,num_edges,dim", SIZES)
def test_aggregate_backward(benchmark, implementation, num_nodes, num_edges, dim):
    graph = random_graph(num_nodes, num_edges)
    x = torch.randn(num_nodes, dim, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ones = torch.ones(num_nodes, dim)
    benchmark.group = f"aggregate forward and backward {num_nodes} nodes, {num_edges} edges, D={dim}"
    benchmark(lambda: torch.autograd.grad(implementation(graph, x), x, ones))
