"""What is special about aggregate, two_hop_graph and random_walk; test_contract_*.py hold what all operators keep."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gmoe_ext import ops, reference
from gmoe_ext.graph import Graph

from .samples import Random, assert_close, assert_identical, outputs

pytestmark = pytest.mark.usefixtures("made_on_device")


def hub_graph(num_nodes: int = 300, hub_edges: int = 30_000, num_edge_types: int = 0) -> Graph:
    """Two neighbouring hubs whose rows are split several times, among ordinary rows."""
    random = Random("hub graph")
    hubs = torch.tensor([100, 101]).repeat_interleave(hub_edges)
    destination = torch.cat([hubs, random.integers(num_nodes, 2000)])
    source = random.integers(num_nodes, destination.numel())
    edge_type = random.integers(num_edge_types, source.numel()) if num_edge_types else None
    weight = random.normal(source.numel())
    return Graph.from_edge_index(torch.stack([source, destination]), num_nodes, weight, edge_type)


def for_threads(call: object) -> list[Tensor]:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(call())  # type: ignore[operator]
    finally:
        torch.set_num_threads(before)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("dim", [1, 16, 130])
def test_split_hubs_equal_the_reference_for_any_number_of_threads(dim: int, dtype: torch.dtype) -> None:
    graph = hub_graph()
    x = Random("hub x").normal(graph.num_nodes, dim).to(dtype)
    one, two, five = for_threads(lambda: ops.aggregate(graph, x))
    assert torch.equal(one, two) and torch.equal(one, five)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float64: 1e-12}[dtype]
    assert_close(one, reference.aggregate(graph, x.double()), "hubs", tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_the_bits_of_a_column_do_not_depend_on_how_many_there_are(dtype: torch.dtype, weighted: bool) -> None:
    """Rows too many for the second-level cache are copied there in slices; bfloat16 columns are taken in pairs."""
    random, num_nodes, num_edges, dim = Random("slices of columns"), 8000, 110_000, 101
    edge_index = torch.stack([random.integers(num_nodes, num_edges), random.integers(num_nodes, num_edges)])
    edge_index[1, :10_000] = 7  # a hub, in parts
    graph = Graph.from_edge_index(edge_index, num_nodes, random.normal(num_edges) if weighted else None)
    x = random.normal(num_nodes, dim).to(dtype)
    y = ops.aggregate(graph, x)
    for first in range(0, dim, 13):
        narrow = ops.aggregate(graph, x[:, first : first + 13].contiguous())
        assert torch.equal(narrow, y[:, first : first + 13])


def test_gradients_of_hubs_equal_the_reference() -> None:
    graph = hub_graph().transpose()  # in the backward pass the hubs are rows
    x = Random("hub x").normal(graph.num_nodes, 9).requires_grad_()
    weight = graph.weight.clone().requires_grad_()  # type: ignore[union-attr]
    cotangent = Random("hub dy").normal(graph.num_nodes, 9)
    for got, want in zip(
        *(torch.autograd.grad(f(graph.with_weight(weight), x), (x, weight), cotangent)
          for f in (ops.aggregate, reference.aggregate)), strict=True
    ):  # fmt: skip
        assert_close(got, want, "gradient at hubs", 1e-12)


def test_two_hops_are_the_operator_twice() -> None:
    graph = Random("two hops").graph("random", 50, weighted=True)
    x = Random("two hops x").normal(50, 7)
    assert torch.equal(ops.aggregate(graph, x, hops=2), ops.aggregate(graph, ops.aggregate(graph, x)))


def test_normalised_graphs_give_the_dense_products() -> None:
    graph = Graph.from_edge_index(torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), 3)
    dense = torch.tensor([[1.0, 1, 0], [1, 1, 1], [0, 1, 1]], dtype=torch.float64)
    scale = dense.sum(1).rsqrt()
    x = Random("dense").normal(3, 4)
    assert_close(ops.aggregate(graph.gcn_norm(), x), (scale[:, None] * dense * scale) @ x, "A x", 1e-6)
    assert_close(ops.aggregate(graph.mean_norm(), x)[1], (x[0] + x[2]) / 2, "mean", 1e-6)


@pytest.mark.native
def test_raw_call_takes_more_sources_than_destinations() -> None:
    x = torch.arange(10.0).view(5, 2)
    offsets, columns = torch.tensor([0, 2, 2, 3]), torch.tensor([0, 4, 3])
    y = torch.ops.gmoe.aggregate(x, offsets, columns, None, None, None, None, None)
    assert y.tolist() == [[8.0, 10.0], [0.0, 0.0], [6.0, 7.0]]


@pytest.mark.native
def test_raw_call_without_the_transpose_refuses_a_gradient() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    offsets, columns = torch.tensor([0, 1, 2]), torch.tensor([1, 0])
    y = torch.ops.gmoe.aggregate(x, offsets, columns, None, None, None, None, None)
    with pytest.raises(RuntimeError, match="gmoe::aggregate: expected 'transpose_offsets'"):
        y.sum().backward()


def test_one_weight_of_zero_hides_a_nan_no_more_than_arithmetic_does() -> None:
    graph = Graph.from_edge_index(torch.tensor([[0], [1]]), 2, torch.tensor([0.0]))
    y = ops.aggregate(graph, torch.tensor([[float("nan")], [1.0]]))
    assert y[1].isnan() and y[0] == 0


# ---- two_hop_graph


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
    with pytest.raises(ValueError, match="gmoe::two_hop_graph: expected 'graph' of at most 46,340 edge types"):
        ops.two_hop_graph(graph)


# ---- random_walk

_MASK = (1 << 64) - 1


def splitmix64(state: int) -> int:
    z = (state + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


@pytest.mark.parametrize("seed", [0, 7, -1, 2**63, 2**64 + 5, -(2**70)])
def test_every_step_is_splitmix64_of_seed_walk_and_step(seed: int) -> None:
    graph = Random("walk").graph("isolated", 40)
    starts = Random("starts").integers(40, 70)
    walks = ops.random_walk(graph, starts, 9, seed).tolist()
    for position, start in enumerate(starts.tolist()):
        node, key = start, splitmix64((splitmix64(seed & _MASK) + position) & _MASK)
        expected = [node]
        for step in range(1, 9):
            begin, end = graph.offsets[node : node + 2].tolist()
            if end > begin:
                node = int(graph.columns[begin + (splitmix64((key + step) & _MASK) >> 1) % (end - begin)])
            expected.append(node)
        assert walks[position] == expected


def test_a_shorter_walk_and_fewer_walks_are_prefixes() -> None:
    graph = Random("walk").graph("random", 100)
    starts = Random("starts").integers(100, 1000)
    walks = ops.random_walk(graph, starts, 10, 3)
    assert torch.equal(ops.random_walk(graph, starts[:77], 4, 3), walks[:77, :4])


def test_every_step_follows_an_edge_or_stays_at_a_dead_end() -> None:
    graph = Graph.from_edge_index(torch.tensor([[1, 2], [0, 1]]), 4)
    walks = ops.random_walk(graph, torch.arange(4), 5, 0)
    assert walks.tolist() == [[0, 1, 2, 2, 2], [1, 2, 2, 2, 2], [2, 2, 2, 2, 2], [3, 3, 3, 3, 3]]


def test_neighbours_are_drawn_evenly() -> None:
    star = Graph.from_edge_index(torch.stack([torch.arange(1, 11), torch.zeros(10, dtype=torch.int64)]), 11)
    drawn = ops.random_walk(star, torch.zeros(100_000, dtype=torch.int64), 2, 11)[:, 1]
    counts = torch.bincount(drawn, minlength=11)[1:].double()
    # Chi-square of 9 degrees of freedom exceeds 27.9 once in a thousand.
    assert ((counts - 10_000).square() / 10_000).sum() < 27.9


def test_another_seed_walks_elsewhere() -> None:
    graph = Random("walk").graph("random", 100)
    starts = torch.arange(100)
    one, two = (ops.random_walk(graph, starts, 10, seed) for seed in (1, 2))
    assert (one != two).double().mean() > 0.8
