"""What is special about routed_edge_aggregate; the contract every operator keeps is tested in test_contract_*.py."""

from __future__ import annotations

import pytest
import torch

from gmoe_ext import ops
from gmoe_ext.graph import Graph

from .samples import Random, assert_close
from .test_aggregate import for_threads, hub_graph

pytestmark = pytest.mark.usefixtures("made_on_device")


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
