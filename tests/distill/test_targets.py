"""Reliability (eq. 10), the sampler of KRD's pairs (eqs. 11 and 12) and the fit of its power."""

import pytest
import torch

from gmoe_ext import Graph
from gmoe_ext.distill import ReliableSampler, StudentTargets, reliability
from gmoe_ext.distill.reliability import entropy

pytest.importorskip("scipy")


def star(leaves=400):
    """Node 0 is joined to every leaf, both directions."""
    leaf = torch.arange(1, leaves + 1)
    edges = torch.stack([leaf, torch.zeros_like(leaf)])
    return Graph.from_edge_index(torch.cat([edges, edges.flip(0)], 1), num_nodes=leaves + 1)


def drawn(sampler, seed=0):
    return sampler.sample(torch.Generator().manual_seed(seed)).weight


def test_entropy_is_that_of_the_distribution():
    torch.testing.assert_close(entropy(torch.zeros(1, 4)), torch.tensor([4.0]).log())


@pytest.mark.parametrize("squared", [True, False])
def test_reliability_is_equation_10_over_its_maximum(squared):
    torch.manual_seed(0)
    x, weight = torch.randn(6, 3), torch.randn(3, 4)
    rho = reliability(lambda rows: rows @ weight, x, seed=5, draws=3, std=0.5, squared=squared)
    generator = torch.Generator().manual_seed(5)
    total = torch.zeros(6)
    for _ in range(3):
        moved = entropy((x + 0.5 * torch.randn(6, 3, generator=generator)) @ weight) - entropy(x @ weight)
        total += moved**2 if squared else moved.abs()
    torch.testing.assert_close(rho, total / total.max())
    assert rho.max() == 1 and rho.min() >= 0


def test_a_teacher_that_noise_cannot_move_is_wholly_reliable():
    assert torch.equal(reliability(lambda rows: torch.zeros(4, 3), torch.ones(4, 2), seed=0), torch.zeros(4))


def test_reliable_neighbours_are_kept_and_the_least_reliable_never():
    graph = star(2)
    sampler = ReliableSampler(graph, torch.tensor([0.0, 0.0, 1.0]))
    for seed in range(20):
        kept = drawn(sampler, seed) > 0
        assert kept[graph.columns == 0].all()
        assert kept[graph.columns == 1].all()
        assert not kept[graph.columns == 2].any()


def test_edges_are_kept_at_the_rate_of_equation_11():
    graph = star()
    sampler = ReliableSampler(graph, torch.full((401,), 0.5), pair_weight="equal", power=2.0)
    share = torch.stack([drawn(sampler, seed) for seed in range(30)]).mean()
    assert abs(share - 0.75) < 0.01  # 24,000 draws: standard error 0.0028


def test_weights_are_one_over_the_neighbourhood():
    graph = star()
    rho = torch.full((401,), 0.5)
    hub = graph.rows == 0
    weight = drawn(ReliableSampler(graph, rho, pair_weight="degree"))
    assert weight[hub].unique().tolist() == pytest.approx([0.0, 1 / 400])
    weight = drawn(ReliableSampler(graph, rho, pair_weight="kept"))
    torch.testing.assert_close(weight[hub].sum(), torch.tensor(1.0))
    weight = drawn(ReliableSampler(graph, rho, pair_weight="equal"))
    assert set(weight.unique().tolist()) == {0.0, 1.0}


def test_the_same_generator_draws_the_same_edges():
    sampler = ReliableSampler(star(), torch.full((401,), 0.5))
    assert torch.equal(drawn(sampler, 1), drawn(sampler, 1))
    assert not torch.equal(drawn(sampler, 1), drawn(sampler, 2))


def test_batches_are_training_nodes_then_kept_pairs_then_own_pairs():
    edges = torch.tensor([[1, 2, 3, 0, 0], [0, 0, 0, 1, 2]])
    sampler = ReliableSampler(Graph.from_edge_index(edges, 4), torch.tensor([0.0, 0.0, 0.0, 1.0]))
    targets = StudentTargets(torch.randn(4, 3), sampler).draw(torch.Generator().manual_seed(0))
    assert (targets.kept_N.tolist(), targets.num_pairs) == ([2, 1, 1, 0], 8)
    told = [(rows.tolist(), copies.tolist()) for rows, copies in targets.batches(torch.tensor([3, 1, 2]), 2)]
    assert told == [([3, 1], [1, 1]), ([2], [1]), ([0], [2]), ([1, 2], [1, 1]), ([0, 1], [1, 1]), ([2, 3], [1, 1])]
    assert [rows.tolist() for rows, _ in targets.batches(torch.tensor([3]), 7)] == [[3], [0, 1, 2, 0, 1, 2]]


def test_power_waits_for_the_warmup_then_moves_towards_the_agreement_curve():
    torch.manual_seed(0)
    rho = torch.rand(20_000)
    graph = Graph.from_edge_index(torch.empty(2, 0, dtype=torch.int64), num_nodes=20_000)
    agree = torch.rand(20_000) < 1 - rho**3
    sampler = ReliableSampler(graph, rho, momentum=0.5, warmup=2)
    powers = []
    for _ in range(12):
        sampler.update(agree)
        powers.append(sampler.power)
    assert powers[:2] == [1.0, 1.0]
    assert powers[2] > 1.5
    assert abs(powers[-1] - 3.0) < 0.3


@pytest.mark.parametrize("agree", ["all but one", "none but one", "where unreliable"])
def test_any_agreement_gives_a_power_within_bounds(agree):
    rho = torch.linspace(0, 1, 401)
    where = {"all but one": rho != rho[200], "none but one": rho == rho[200], "where unreliable": rho > 0.5}[agree]
    sampler = ReliableSampler(star(), rho, warmup=0, momentum=0.0)
    sampler.update(where)
    assert 0.009 < sampler.power < 101


def test_full_agreement_leaves_the_power_alone():
    sampler = ReliableSampler(star(), torch.rand(401), warmup=0, bins=1)
    sampler.update(torch.ones(401, dtype=torch.bool))
    assert sampler.power == 1.0


def test_state_goes_round():
    sampler, other = (ReliableSampler(star(), torch.linspace(0, 1, 401), warmup=0) for _ in range(2))
    for _ in range(3):
        sampler.update(torch.arange(401) < 200)
    other.load_state(sampler.state())
    assert (other.power, other.updates) == (sampler.power, 3) and sampler.power != 1.0
    assert torch.equal(drawn(sampler), drawn(other))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"'reliability' of shape \[401\]"):
        ReliableSampler(star(), torch.zeros(3))
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        ReliableSampler(star(), torch.full((401,), 2.0))
    with pytest.raises(ValueError, match="'pair_weight'"):
        ReliableSampler(star(), torch.zeros(401), pair_weight="sum")
    with pytest.raises(ValueError, match="'draws' of at least 1, got 0"):
        reliability(lambda rows: rows, torch.ones(2, 2), seed=0, draws=0)
