"""What is special about edge_aggregate; the contract every operator keeps is tested in test_contract_*.py."""

from __future__ import annotations

import pytest
import torch

from gmoe_ext import ops, reference
from gmoe_ext.graph import Graph

from .samples import Random, assert_close
from .test_aggregate import for_threads, hub_graph

pytestmark = pytest.mark.usefixtures("made_on_device")


def test_split_hubs_equal_the_reference_for_any_number_of_threads() -> None:
    graph = hub_graph(num_edge_types=5)
    x, table = Random("x").normal(graph.num_nodes, 19), Random("table").normal(5, 19)
    want = reference.edge_aggregate(graph, x, table)
    one, two, five = for_threads(lambda: ops.edge_aggregate(graph, x, table))
    assert torch.equal(one, two) and torch.equal(one, five)
    assert_close(one, want, "hubs", 1e-12)


def test_table_gradients_of_many_tasks_are_added_in_order() -> None:
    """Hubs in the backward rows, and enough edges for several private tables."""
    graph = hub_graph(num_edge_types=5).transpose()
    leaves = [Random("x").normal(graph.num_nodes, 19).requires_grad_(), Random("t").normal(5, 19).requires_grad_()]
    cotangent = Random("dy").normal(graph.num_nodes, 19)

    def gradients() -> torch.Tensor:
        found = torch.autograd.grad(ops.edge_aggregate(graph, *leaves), leaves, cotangent)
        return torch.cat([gradient.flatten() for gradient in found])

    one, two, five = for_threads(gradients)
    assert torch.equal(one, two) and torch.equal(one, five)
    want = torch.autograd.grad(reference.edge_aggregate(graph, *leaves), leaves, cotangent)
    assert_close(one, torch.cat([gradient.flatten() for gradient in want]), "gradients", 1e-11)


def test_a_message_of_exactly_zero_has_no_gradient() -> None:
    graph = Graph.from_edge_index(torch.tensor([[0], [1]]), 2, edge_type=torch.tensor([0]))
    x, table = torch.tensor([[1.0], [0.0]], requires_grad=True), torch.tensor([[-1.0]], requires_grad=True)
    ops.edge_aggregate(graph, x, table).sum().backward()
    assert x.grad is not None and x.grad.count_nonzero() == 0
    assert table.grad is not None and table.grad.count_nonzero() == 0


def test_gcn_of_the_molecule_benchmark() -> None:
    """norm relu(x_j + e_ij) summed, plus relu(x_i + root) / deg_i as the self loops' row of the table."""
    edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    graph = Graph.from_edge_index(edge_index, 3, edge_type=torch.tensor([0, 0, 1, 1])).gcn_norm()
    x, bonds, root = Random("x").normal(3, 4), Random("bonds").normal(2, 4), Random("root").normal(1, 4)
    degree = torch.tensor([2.0, 3.0, 2.0], dtype=torch.float64)
    want = torch.relu(x + root) / degree[:, None]
    for source, destination, bond in zip(*edge_index.tolist(), [0, 0, 1, 1], strict=True):
        norm = (degree[source] * degree[destination]).rsqrt()
        want[destination] += norm * torch.relu(x[source] + bonds[bond])
    assert_close(ops.edge_aggregate(graph, x, torch.cat([bonds, root])), want, "OGB-GCN", 1e-6)
