"""routed_edge_mixture against its pure-PyTorch reference (every expert on every node), at the sizes of molecules."""

import pytest
import torch

from gmoe_ext import ops, reference

from .bench_aggregate import random_graph

SIZES = [(800, 2_500, 150), (26_000, 80_000, 150)]  # a batch of 32 molecules with self loops; an evaluation batch


@pytest.mark.parametrize(
    "implementation", [ops.routed_edge_mixture, reference.routed_edge_mixture], ids=["native", "reference"]
)
@pytest.mark.parametrize("num_nodes,num_edges,dim", SIZES)
def test_routed_edge_mixture(benchmark, implementation, num_nodes, num_edges, dim):
    graph = random_graph(num_nodes, num_edges, num_edge_types=61)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, num_nodes, dim, generator=generator)
    table = torch.randn(8, 61, dim, generator=generator)
    index = torch.rand(num_nodes, 8, generator=generator).argsort(dim=1)[:, :4].contiguous()
    gate = torch.rand(num_nodes, 4, generator=generator)
    scale, shift = torch.rand(2, 8, dim, generator=generator)
    benchmark.group = f"routed_edge_mixture {num_nodes} nodes, {num_edges} edges, D={dim}, E=8, k=4"
    benchmark(implementation, graph, x, table, index, gate, scale, shift)
