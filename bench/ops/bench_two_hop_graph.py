"""two_hop_graph against its pure-PyTorch reference (all paths, two sorts)."""

import pytest
import torch

from gmoe_ext import ops, reference
from gmoe_ext.graph import Graph

SIZES = [800, 26_000, 1_000_000]


def chains(num_nodes):
    """Rings of six nodes joined in pairs: the degrees of molecules, edges both ways, 60 edge types."""
    node = torch.arange(num_nodes)
    ring = torch.stack([node, (node // 6) * 6 + (node + 1) % 6])
    bridge = torch.stack([node[::12], node[::12] + 6])
    edges = torch.cat([ring, bridge], dim=1)
    edges = edges[:, (edges < num_nodes).all(dim=0)]
    edges = torch.cat([edges, edges.flip(0)], dim=1)
    edge_type = torch.randint(60, (edges.shape[1],), generator=torch.Generator().manual_seed(0))
    return Graph.from_edge_index(edges, num_nodes, edge_type=edge_type, num_edge_types=60)


@pytest.mark.parametrize("implementation", [ops.two_hop_graph, reference.two_hop_graph], ids=["native", "reference"])
@pytest.mark.parametrize("num_nodes", SIZES)
def test_two_hop_graph(benchmark, implementation, num_nodes):
    benchmark.group = f"two_hop_graph {num_nodes} nodes"
    benchmark(implementation, chains(num_nodes))
