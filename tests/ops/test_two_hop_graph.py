"""What is special about two_hop_graph; the contract every operator keeps is tested in test_contract_*.py."""

from __future__ import annotations

import pytest
import torch

from gmoe_ext import ops, reference
from gmoe_ext.graph import Graph

from .samples import Random, assert_identical, outputs

pytestmark = pytest.mark.usefixtures("made_on_device")


def _both_ways(edges: list[tuple[int, int]], num_nodes: int, **options: object) -> Graph:
    edge_index = torch.tensor(edges + [(b, a) for a, b in edges]).T
    return Graph.from_edge_index(edge_index, num_nodes, **options)  # type: ignore[arg-type]


def test_a_triangle_has_no_strict_two_hop_neighbours() -> None:
    assert ops.two_hop_graph(_both_ways([(0, 1), (1, 2), (2, 0)], 3)).num_edges == 0


def test_a_square_has_its_diagonals_once() -> None:
    square = ops.two_hop_graph(_both_ways([(0, 1), (1, 2), (2, 3), (3, 0)], 4))
    assert square.edge_index().tolist() == [[2, 3, 0, 1], [0, 1, 2, 3]]


def test_the_path_through_the_lowest_node_gives_the_type() -> None:
    # 0 -> 2 -> 3 of types (1, 0) and, listed later, 0 -> 1 -> 3 of types (0, 1).
    edge_index = torch.tensor([[0, 2, 0, 1], [2, 3, 1, 3]])
    graph = Graph.from_edge_index(edge_index, 4, edge_type=torch.tensor([1, 0, 0, 1]), num_edge_types=2)
    two_hop = ops.two_hop_graph(graph)
    assert two_hop.edge_index().tolist() == [[0], [3]]
    assert two_hop.edge_type is not None and two_hop.edge_type.tolist() == [0 * 2 + 1]
    assert two_hop.num_edge_types == 4


def test_many_blocks_of_rows_equal_the_reference_for_any_number_of_threads() -> None:
    graph = Random("blocks").graph("random", 5000, num_edge_types=4)
    want = outputs(reference.two_hop_graph(graph))
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert_identical(outputs(ops.two_hop_graph(graph)), want, f"{threads} threads")
    finally:
        torch.set_num_threads(before)


@pytest.mark.native
def test_types_that_do_not_fit_the_columns_are_refused() -> None:
    graph = Graph.from_edge_index(torch.tensor([[0], [1]]), 2, edge_type=torch.tensor([0]), num_edge_types=50_000)
    with pytest.raises(RuntimeError, match="gmoe::two_hop_graph: expected 'num_edge_types'"):
        ops.two_hop_graph(graph)
