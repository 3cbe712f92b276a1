"""routed_edge_aggregate against its pure-PyTorch reference (every expert on every node), at the sizes of molecules."""

import pytest
import torch

from gmoe_ext import ops, reference

from .bench_aggregate import random_graph

SIZES = [(800, 2_500, 150), (26_000, 80_000, 150)]  # a batch of 32 molecules with self loops; an evaluation batch


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "with gradients"])
@pytest.mark.parametrize(
    "implementation", [ops.routed_edge_aggregate, reference.routed_edge_aggregate], ids=["native", "reference"]
)
@pytest.mark.parametrize("num_nodes,num_edges,dim", SIZES)
def test_routed_edge_aggregate(benchmark, implementation, num_nodes, num_edges, dim, backward):
    graph = random_graph(num_nodes, num_edges, num_edge_types=61)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, num_nodes, dim, generator=generator, requires_grad=backward)
    table = torch.randn(8, 61, dim, generator=generator, requires_grad=backward)
    index = torch.rand(num_nodes, 8, generator=generator).argsort(dim=1)[:, :4].contiguous()
    ones = torch.ones(num_nodes, 4, dim)

    def call():
        y = implementation(graph, x, table, index)
        return torch.autograd.grad(y, (x, table), ones) if backward else y

    size = f"{num_nodes} nodes, {num_edges} edges, D={dim}, E=8, k=4"
    benchmark.group = f"routed_edge_aggregate {size}" + " with gradients" * backward
    benchmark(call)
