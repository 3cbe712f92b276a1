"""Operators: what holds for every graph and every routing, whatever the numbers are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gmoe_ext import ops
from gmoe_ext.graph import Graph
from tests.graphs import dense, graphs, relabelled

SEEDS = st.integers(0, 2**31 - 1)
TYPES, EXPERTS, WIDTH = 3, 4, 5


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def moved(values: Tensor, new_id: Tensor) -> Tensor:
    """The rows of nodes, in the nodes' new order."""
    return torch.empty_like(values).index_copy_(0, new_id, values)


def routing(seed: int, rows: int, k: int = 2) -> tuple[Tensor, Tensor]:
    return ops.topk_softmax(normal(seed, rows, EXPERTS), k)


@given(graphs(), SEEDS, st.sampled_from([1, 2]))
def test_sums_over_neighbours_move_with_the_nodes(graph: Graph, seed: int, hops: int) -> None:
    other, new_id = relabelled(graph, seed)
    x = normal(seed, graph.num_nodes, WIDTH)
    assert torch.equal(ops.aggregate(other, moved(x, new_id), hops), moved(ops.aggregate(graph, x, hops), new_id))


@given(graphs(num_edge_types=TYPES), SEEDS)
def test_sums_over_typed_edges_move_with_the_nodes(graph: Graph, seed: int) -> None:
    other, new_id = relabelled(graph, seed)
    x, table = normal(seed, graph.num_nodes, WIDTH), normal(seed + 1, TYPES, WIDTH)
    got = ops.edge_aggregate(other, moved(x, new_id), table)
    assert torch.equal(got, moved(ops.edge_aggregate(graph, x, table), new_id))


@given(graphs(num_edge_types=TYPES), SEEDS)
def test_routed_sums_over_typed_edges_move_with_the_nodes(graph: Graph, seed: int) -> None:
    other, new_id = relabelled(graph, seed)
    x, table = normal(seed, graph.num_nodes, WIDTH), normal(seed + 1, EXPERTS, TYPES, WIDTH)
    gate, index = routing(seed, graph.num_nodes)
    given_nodes = (moved(x, new_id), table, moved(index, new_id))
    slots = ops.routed_edge_aggregate(graph, x, table, index)
    assert torch.equal(ops.routed_edge_aggregate(other, *given_nodes), moved(slots, new_id))
    mixed = ops.routed_edge_mixture(graph, x, table, index, gate)
    assert torch.equal(ops.routed_edge_mixture(other, *given_nodes, moved(gate, new_id)), moved(mixed, new_id))


@given(graphs(), SEEDS)
def test_the_two_hop_graph_moves_with_the_nodes(graph: Graph, seed: int) -> None:
    other, new_id = relabelled(graph, seed)
    pairs = new_id[ops.two_hop_graph(graph).edge_index()].T.tolist()
    assert sorted(pairs) == sorted(ops.two_hop_graph(other).edge_index().T.tolist())


@given(graphs(), SEEDS)
def test_two_hops_are_one_hop_twice(graph: Graph, seed: int) -> None:
    x = normal(seed, graph.num_nodes, WIDTH)
    assert torch.equal(ops.aggregate(graph, x, 2), ops.aggregate(graph, ops.aggregate(graph, x)))


@given(graphs(weighted=False))
def test_the_two_hop_graph_holds_what_two_steps_reach(graph: Graph) -> None:
    once = dense(graph) > 0
    twice = (once.double() @ once.double()) > 0
    expected = twice & ~once & ~torch.eye(graph.num_nodes, dtype=torch.bool)
    assert torch.equal(dense(ops.two_hop_graph(graph)) > 0, expected)
    assert torch.equal(dense(ops.two_hop_graph(graph, exclude_self=False, exclude_one_hop=False)) > 0, twice)


@given(graphs(dtype=torch.float64), SEEDS)
def test_the_gradient_of_a_sum_is_the_sum_over_the_reverse_graph(graph: Graph, seed: int) -> None:
    x = normal(seed, graph.num_nodes, WIDTH, dtype=torch.float64).requires_grad_()
    towards = normal(seed + 1, graph.num_nodes, WIDTH, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(ops.aggregate(graph, x), x, towards)
    torch.testing.assert_close(gradient, ops.aggregate(graph.transpose(), towards))


@given(graphs(), SEEDS, st.integers(1, 6))
def test_every_step_of_a_walk_follows_an_edge(graph: Graph, seed: int, length: int) -> None:
    starts = torch.arange(graph.num_nodes)
    walks = ops.random_walk(graph, starts, length, seed)
    neighbours = dense(graph.with_weight(None)) > 0
    assert torch.equal(walks[:, 0], starts)
    for before, after in zip(walks.T[:-1], walks.T[1:], strict=True):
        lonely = ~neighbours[before].any(1)
        assert bool((neighbours[before, after] | (lonely & (before == after))).all())


def drawn_scores(seed: int, rows: int, experts: int) -> Tensor:
    """Scores with ties: a third of the seeds give few distinct values."""
    scores = normal(seed, rows, experts)
    return scores.round() if seed % 3 == 0 else scores


ROUTES = st.tuples(SEEDS, st.integers(0, 9), st.integers(1, 9)).flatmap(
    lambda drawn: st.tuples(*map(st.just, drawn), st.integers(1, drawn[2]))
)


def check_gate(gate: Tensor, index: Tensor, scores: Tensor, k: int) -> None:
    """Gates sum to 1 and descend; the k experts are distinct, and those that a stable sort of the scores puts first."""
    assert gate.shape == index.shape == (len(scores), k)
    torch.testing.assert_close(gate.sum(1), torch.ones(len(scores)))
    assert bool((gate[:, :-1] >= gate[:, 1:]).all()) and bool((gate >= 0).all())
    assert torch.equal(index, scores.sort(dim=1, descending=True, stable=True).indices[:, :k])


@given(ROUTES)
def test_gates_of_logits_sum_to_one_and_choose_the_k_best(drawn: tuple[int, int, int, int]) -> None:
    seed, rows, experts, k = drawn
    scores = drawn_scores(seed, rows, experts)
    check_gate(*ops.topk_softmax(scores, k), scores, k)


@given(ROUTES)
def test_gates_of_noisy_logits_sum_to_one_and_choose_the_k_best(drawn: tuple[int, int, int, int]) -> None:
    seed, rows, experts, k = drawn
    clean, sigma = drawn_scores(seed, rows, experts), normal(seed + 1, rows, experts).exp()
    noise = normal(seed + 2, rows, experts)
    gate, index, importance, load = ops.noisy_topk(clean, sigma, noise, k)
    check_gate(gate, index, clean + noise * sigma, k)
    torch.testing.assert_close(importance.sum(), torch.tensor(float(rows)))
    assert bool(((load >= 0) & (load <= rows)).all())


@given(ROUTES)
def test_gates_of_cosines_sum_to_one_and_length_does_not_matter(drawn: tuple[int, int, int, int]) -> None:
    seed, rows, experts, k = drawn
    x, memory = normal(seed, rows, WIDTH), normal(seed + 1, experts, WIDTH)
    gate, index = ops.cosine_topk(x, memory, k)
    cosine = torch.nn.functional.cosine_similarity(x[:, None].double(), memory[None].double(), dim=2)
    torch.testing.assert_close(gate.sum(1), torch.ones(rows))
    assert bool((index.sort(1).values.diff(dim=1) > 0).all()), "an expert was chosen twice"
    torch.testing.assert_close(gate, cosine.gather(1, index).softmax(1).float(), atol=1e-5, rtol=1e-5)
    longer = ops.cosine_topk(4 * x, memory / 2, k)
    assert torch.equal(longer[1], index) and torch.equal(longer[0], gate)


@given(ROUTES)
def test_rows_are_routed_apart(drawn: tuple[int, int, int, int]) -> None:
    seed, rows, experts, k = drawn
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    x, memory = normal(seed, rows, WIDTH), normal(seed + 1, experts, WIDTH)
    for route in (lambda x: ops.cosine_topk(x, memory, k), lambda x: ops.topk_softmax(x @ memory.T, k)):
        (gate, index), (other_gate, other_index) = route(x), route(x[order])
        torch.testing.assert_close(other_gate, gate[order])
        assert torch.equal(other_index, index[order])


@given(SEEDS, st.integers(0, 20), st.integers(1, 4), st.integers(1, 6), st.booleans())
def test_a_plan_is_a_permutation_grouped_by_expert(seed: int, rows: int, k: int, experts: int, narrow: bool) -> None:
    index = torch.randint(experts, (rows, k), generator=torch.Generator().manual_seed(seed))
    plan = ops.expert_plan(index.int() if narrow else index, experts)
    assert plan.order.sort().values.tolist() == list(range(rows * k))
    assert torch.equal(plan.order, index.flatten().argsort(stable=True))
    assert torch.equal(plan.offsets.diff(), index.flatten().bincount(minlength=experts))
    assert plan.offsets[0] == 0


@given(SEEDS, st.integers(0, 12), st.integers(1, EXPERTS))
def test_chosen_experts_give_what_all_experts_give_with_zero_gates(seed: int, rows: int, k: int) -> None:
    x, weight, bias = normal(seed, rows, 3), normal(seed + 1, EXPERTS, WIDTH, 3), normal(seed + 2, EXPERTS, WIDTH)
    gate, index = routing(seed, rows, k)
    sparse = ops.expert_linear(x, weight, bias, ops.expert_plan(index, EXPERTS), gate)
    gate_of_all = torch.zeros(rows, EXPERTS).scatter(1, index, gate)
    every = torch.arange(EXPERTS).expand(rows, -1).contiguous()
    full = ops.expert_linear(x, weight, bias, ops.expert_plan(every, EXPERTS), gate_of_all)
    torch.testing.assert_close(sparse, full, atol=1e-5, rtol=1e-5)


@given(SEEDS, st.integers(1, 12), st.booleans())
def test_rows_of_experts_are_computed_apart(seed: int, rows: int, gated: bool) -> None:
    x, weight = normal(seed, rows, 3), normal(seed + 1, EXPERTS, WIDTH, 3)
    gate, index = routing(seed, rows)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    y = ops.expert_linear(x, weight, None, ops.expert_plan(index, EXPERTS), gate if gated else None)
    plan = ops.expert_plan(index[order], EXPERTS)
    other = ops.expert_linear(x[order], weight, None, plan, gate[order] if gated else None)
    torch.testing.assert_close(other, y[order])


@given(graphs(num_edge_types=TYPES), SEEDS)
def test_routed_messages_are_those_of_each_expert(graph: Graph, seed: int) -> None:
    x, table = normal(seed, EXPERTS, graph.num_nodes, WIDTH), normal(seed + 1, EXPERTS, TYPES, WIDTH)
    gate, index = routing(seed, graph.num_nodes)
    each = torch.stack([ops.edge_aggregate(graph, x[e], table[e]) for e in range(EXPERTS)], 1)
    chosen = each.gather(1, index[..., None].expand(-1, -1, WIDTH))
    torch.testing.assert_close(ops.routed_edge_aggregate(graph, x, table, index), chosen)
    mixed = ops.routed_edge_mixture(graph, x, table, index, gate)
    torch.testing.assert_close(mixed, (gate[..., None] * chosen).sum(1), atol=1e-5, rtol=1e-5)


@given(SEEDS, st.integers(1, 12), st.floats(0, 1))
def test_a_memory_moves_between_its_direction_and_its_rows(seed: int, rows: int, rate: float) -> None:
    memory, x = normal(seed, EXPERTS, WIDTH), normal(seed + 1, rows, WIDTH)
    gate, index = ops.cosine_topk(x, memory, 2)
    new = ops.memory_update(memory, x, gate, index, rate)
    assert bool((new.norm(dim=1) <= 1 + 1e-5).all())
    unused = torch.bincount(index.flatten(), minlength=EXPERTS) == 0
    kept = rate * torch.nn.functional.normalize(memory)
    torch.testing.assert_close(new[unused], kept[unused], atol=1e-6, rtol=1e-5)
    got = ops.cosine_topk_update(x, memory, 2, rate)
    assert torch.equal(got[0], gate) and torch.equal(got[1], index)
    torch.testing.assert_close(got[2], new, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 3])
@given(seed=SEEDS, rows=st.integers(0, 12))
def test_normalised_slots_of_an_expert_have_mean_zero_and_variance_one(k: int, seed: int, rows: int) -> None:
    y = normal(seed, rows, k, WIDTH, dtype=torch.float64)
    index = torch.randint(EXPERTS, (rows, k), generator=torch.Generator().manual_seed(seed))
    one, zero = torch.ones(EXPERTS, WIDTH, dtype=torch.float64), torch.zeros(EXPERTS, WIDTH, dtype=torch.float64)
    out, mean, var, count = ops.expert_norm(y, index, one, zero, zero, one, eps=0.0)
    assert torch.equal(count, index.flatten().bincount(minlength=EXPERTS))
    for expert in range(EXPERTS):
        mine = out[index == expert]
        if len(mine) < 2:
            torch.testing.assert_close(mine, y[index == expert])
            continue
        torch.testing.assert_close(mine.mean(0), zero[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(mine.var(0, unbiased=False), one[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(y[index == expert].mean(0), mean[expert])
        torch.testing.assert_close(y[index == expert].var(0, unbiased=False), var[expert])
