"""edge_aggregate against its pure-PyTorch reference, forward alone and with the gradients of x and the table."""

import pytest
import torch

from gmoe_ext import ops, reference

from .bench_aggregate import random_graph

SIZES = [(800, 2_500, 300), (26_000, 80_000, 300), (20_000, 500_000, 128)]


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "with gradients"])
@pytest.mark.parametrize("implementation", [ops.edge_aggregate, reference.edge_aggregate], ids=["native", "reference"])
@pytest.mark.parametrize("num_nodes,num_edges,dim", SIZES)
def test_edge_aggregate(benchmark, implementation, num_nodes, num_edges, dim, backward):
    graph = random_graph(num_nodes, num_edges, num_edge_types=61)
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(rows, dim, generator=generator, requires_grad=backward) for rows in (num_nodes, 61)]
    ones = torch.ones(num_nodes, dim)

    def call():
        y = implementation(graph, *leaves)
        return torch.autograd.grad(y, leaves, ones) if backward else y

    benchmark.group = f"edge_aggregate {num_nodes} nodes, {num_edges} edges, D={dim}" + " with gradients" * backward
    benchmark(call)
