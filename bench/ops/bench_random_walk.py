"""random_walk against its pure-PyTorch reference: ten walks of 80 nodes from every node."""

import pytest
import torch

from gmoe_ext import ops, reference

from .bench_aggregate import random_graph

SIZES = [(2_500, 10_000), (20_000, 500_000)]


@pytest.mark.parametrize("implementation", [ops.random_walk, reference.random_walk], ids=["native", "reference"])
@pytest.mark.parametrize("num_nodes,num_edges", SIZES)
def test_random_walk(benchmark, implementation, num_nodes, num_edges):
    graph = random_graph(num_nodes, num_edges)
    starts = torch.arange(num_nodes).repeat(10)
    benchmark.group = f"random_walk {num_nodes} nodes, {num_edges} edges, {starts.numel()} walks of 80"
    benchmark(implementation, graph, starts, 80, 0)
