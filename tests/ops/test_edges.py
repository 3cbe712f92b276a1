"""What is special about edge_aggregate and its routed form; test_contract_*.py hold what all operators keep."""

from __future__ import annotations

import pytest
import torch

from gmoe_ext import ops, reference
from gmoe_ext.graph import Graph

from .samples import Random, assert_close
from .test_graphs import for_threads, hub_graph

pytestmark = pytest.mark.usefixtures("made_on_device")


def test_messages_at_split_hubs_equal_the_reference_for_any_number_of_threads() -> None:
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


# ---- routed_edge_aggregate


def _case(num_nodes: int = 40, dim: int = 9) -> tuple[Graph, torch.Tensor, torch.Tensor]:
    graph = Random("graph").graph("random", num_nodes, weighted=True, num_edge_types=3)
    return graph, Random("x").normal(4, num_nodes, dim), Random("table").normal(4, 3, dim)


def test_each_slot_is_its_experts_edge_aggregate() -> None:
    graph, x, table = _case()
    index = Random("index").distinct(40, 4, 2)
    y = ops.routed_edge_aggregate(graph, x, table, index)
    dense = torch.stack([ops.edge_aggregate(graph, x[e], table[e]) for e in range(4)], dim=1)
    assert torch.equal(y, dense.gather(1, index[:, :, None].expand(-1, -1, 9)))


def test_two_ranges_of_experts_add_up_to_all() -> None:
    graph, x, table = _case()
    index = Random("index").distinct(40, 4, 3)
    low = ops.routed_edge_aggregate(graph, x[:1], table[:1], index)
    high = ops.routed_edge_aggregate(graph, x[1:], table[1:], index, first_expert=1)
    assert torch.equal(low + high, ops.routed_edge_aggregate(graph, x, table, index))


@pytest.mark.parametrize("first", [0, 7, -3])
def test_any_integer_that_is_no_expert_gives_zeros(first: int) -> None:
    graph, x, table = _case()
    index = torch.tensor([-(2**63), first - 1, first + 4, 2**63 - 1]).repeat(40, 1)
    assert ops.routed_edge_aggregate(graph, x, table, index, first).count_nonzero() == 0


def test_an_expert_chosen_twice_answers_twice_and_learns_twice() -> None:
    graph, x, table = _case()
    index = torch.full((40, 2), 2)
    x.requires_grad_()
    y = ops.routed_edge_aggregate(graph, x, table, index)
    assert torch.equal(y[:, 0], y[:, 1])
    (twice,) = torch.autograd.grad(y.sum(), x)
    (once,) = torch.autograd.grad(ops.routed_edge_aggregate(graph, x, table, index[:, :1]).sum(), x)
    assert_close(twice, 2 * once, "gradient", 1e-12)
    assert twice[[0, 1, 3]].count_nonzero() == 0


def test_split_hubs_are_the_same_for_any_number_of_threads() -> None:
    graph = hub_graph(num_edge_types=5)
    nodes = graph.num_nodes
    index = Random("index").distinct(nodes, 4, 2)
    for transposed in (graph, graph.transpose()):
        leaves = [Random("x").normal(4, nodes, 5).requires_grad_(), Random("t").normal(4, 5, 5).requires_grad_()]

        def everything(rows: Graph = transposed, leaves: list[torch.Tensor] = leaves) -> torch.Tensor:
            y = ops.routed_edge_aggregate(rows, *leaves, index)
            return torch.cat([value.flatten() for value in (y, *torch.autograd.grad(y.square().sum(), leaves))])

        one, two, five = for_threads(everything)
        assert torch.equal(one, two) and torch.equal(one, five)
