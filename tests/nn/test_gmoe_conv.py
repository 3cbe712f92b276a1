"""GMoEConv against the naive mixture, in training and evaluation, and at its edges."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from safetensors.torch import load, save

from gmoe_ext import Graph, ops
from gmoe_ext.nn import GMoEConfig, GMoEConv
from gmoe_ext.nn.gmoe import experts

from .naive_gmoe import BOND_DIMS, Molecules, NaiveGMoE

GRID = [(1, 1, 1), (4, 4, 2), (4, 2, 2), (4, 0, 1), (4, 2, 1), (3, 1, 3)]
DIM, OUT = 5, 6


def make(base, bonds, n, m, k, norm, combine="sum", seed=0):
    """A layer in float64 with a gate that prefers and statistics that are not the initial ones."""
    torch.manual_seed(seed)
    config = GMoEConfig(
        num_experts=n,
        num_hop1=m,
        k=k,
        base=base,
        bond_dims=BOND_DIMS if bonds else None,
        norm=norm,
        combine=combine,
    )
    conv = GMoEConv(DIM, OUT, config).double()
    with torch.no_grad():
        for name, p in conv.named_parameters():
            if name.startswith("gate") or name.endswith("eps"):
                p.normal_()
        for name, b in conv.named_buffers():
            if name.endswith("running_var"):
                b.uniform_(0.5, 1.5)
            elif name.endswith("running_mean"):
                b.normal_()
    return conv


def run(conv, x, molecules, bonds, seed=1):
    torch.manual_seed(seed)
    wide = (molecules.two_hop, molecules.pair_types) if bonds else ()
    return conv(x, molecules.graph, *wide)


def routing_of(conv, x, seed=1):
    """The gate and index that `run` used."""
    if conv.gate is None:
        return torch.ones(x.shape[0], 1, dtype=x.dtype), torch.zeros(x.shape[0], 1, dtype=torch.int64)
    torch.manual_seed(seed)
    routing = conv.gate(x)
    return routing.gate, routing.index


def close(actual, expected):
    # The graph keeps its weights in float32.
    torch.testing.assert_close(actual, expected, rtol=2e-5, atol=2e-6)


@pytest.fixture
def molecules(device):
    return _molecules(device)


@functools.cache
def _molecules(_device):
    return Molecules(num_nodes=24, num_bonds=30, seed=3)


@pytest.mark.parametrize("norm", ["routed", "all_nodes", "none"])
@pytest.mark.parametrize(("n", "m", "k"), GRID)
@pytest.mark.parametrize("bonds", [False, True], ids=["plain", "bonds"])
@pytest.mark.parametrize("base", ["gcn", "sage", "gin"])
def test_training_equals_the_naive_mixture(base, bonds, n, m, k, norm, molecules):
    conv = make(base, bonds, n, m, k, norm)
    naive = NaiveGMoE(conv, bonds)
    x = torch.randn(molecules.num_nodes, DIM, dtype=torch.float64)
    direction = torch.randn(molecules.num_nodes, OUT, dtype=torch.float64)

    mine = x.clone().requires_grad_()
    y, _ = run(conv, mine, molecules, bonds)
    (y * direction).sum().backward()
    gate_gradients = [] if conv.gate is None else [p.grad.clone() for p in conv.gate.parameters()]
    conv_gradients = copy.deepcopy([p.grad for p in conv.parameters()])

    theirs = x.clone().requires_grad_()
    gate, index = routing_of(conv, theirs)
    if conv.gate is not None:
        conv.gate.zero_grad()
    expected = naive(theirs, molecules, gate, index)
    (expected * direction).sum().backward()

    close(y, expected)
    close(mine.grad, theirs.grad)
    if conv.gate is not None:
        for actual, parameter in zip(gate_gradients, conv.gate.parameters(), strict=True):
            close(actual, parameter.grad)
    for parameter, gradient in zip(conv.parameters(), conv_gradients, strict=True):
        parameter.grad = gradient
    for expected_gradient, actual_gradient in naive.gradients():
        close(actual_gradient, expected_gradient)
    for expected_statistic, actual_statistic in naive.statistics():
        close(actual_statistic, expected_statistic)


@pytest.mark.parametrize("norm", ["routed", "all_nodes", "none"])
@pytest.mark.parametrize(("n", "m", "k"), [(1, 1, 1), (4, 2, 2)])
@pytest.mark.parametrize("bonds", [False, True], ids=["plain", "bonds"])
@pytest.mark.parametrize("base", ["gcn", "sage", "gin"])
def test_evaluation_equals_the_dense_mixture_on_running_statistics(base, bonds, n, m, k, norm, molecules):
    conv = make(base, bonds, n, m, k, norm).eval()
    naive = NaiveGMoE(conv, bonds).eval()
    x = torch.randn(molecules.num_nodes, DIM, dtype=torch.float64)
    before = copy.deepcopy(dict(conv.named_buffers()))
    y, aux = run(conv, x, molecules, bonds)
    close(y, naive(x, molecules, *routing_of(conv, x)))
    assert aux.shape == ()
    for name, buffer in conv.named_buffers():
        assert torch.equal(buffer, before[name])


@pytest.mark.parametrize("rows_at_once", [1, 1 << 23])
@pytest.mark.parametrize("norm", ["routed", "none"])
@pytest.mark.parametrize(("n", "m", "k"), GRID)
@pytest.mark.parametrize("base", ["gcn", "sage"])
def test_evaluation_without_gradients_gives_the_same(base, n, m, k, norm, rows_at_once, molecules, monkeypatch):
    monkeypatch.setattr(experts, "ROWS_AT_ONCE", rows_at_once)
    conv, x = make(base, True, n, m, k, norm).eval(), torch.randn(24, DIM, dtype=torch.float64)
    expected, _ = run(conv, x, molecules, True)
    with torch.no_grad():
        actual, _ = run(conv, x, molecules, True)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(("n", "m", "k"), [(4, 2, 2), (4, 4, 1)])
def test_evaluation_transforms_only_rows_that_a_node_reads(n, m, k, molecules, device, monkeypatch):
    if device.type != "cpu":
        pytest.skip("on a device all rows are transformed, so that nothing waits for their number")
    conv, x = make("gcn", True, n, m, k, "routed").eval(), torch.randn(24, DIM, dtype=torch.float64)
    index_NK, transformed = routing_of(conv, x)[1], []
    graphs = [molecules.graph] * m + [molecules.two_hop] * (n - m)
    needed = set()
    for e, graph in enumerate(graphs):
        source, target = graph.edge_index().tolist()
        for j, i in [*zip(source, target, strict=True), *((i, i) for i in range(24))]:
            if e in index_NK[i]:
                needed.add((e, j))

    def spy(x, weight, bias, plan, *others):
        transformed.append(len(plan.order))
        return expert_linear(x, weight, bias, plan, *others)

    expert_linear = experts.ops.expert_linear
    monkeypatch.setattr(experts.ops, "expert_linear", spy)
    expected = run(conv, x, molecules, True)[0]
    transformed.clear()
    torch.use_deterministic_algorithms(True)  # fills memory that nobody has written with NaN
    try:
        with torch.no_grad():
            actual = run(conv, x, molecules, True)[0]
    finally:
        torch.use_deterministic_algorithms(False)
    assert sum(transformed) == len(needed) < n * 24
    close(actual, expected)


def test_evaluation_under_autocast(molecules):
    conv, x = make("gcn", True, 4, 2, 2, "routed").float().eval(), torch.randn(24, DIM)
    with torch.no_grad():
        expected, _ = run(conv, x, molecules, True)
        with torch.autocast(x.device.type, torch.bfloat16):
            actual, _ = run(conv, x, molecules, True)
    torch.testing.assert_close(actual.float(), expected, rtol=0.1, atol=0.1 * expected.abs().max().item())


def test_all_nodes_and_routed_norm_agree_in_evaluation(molecules):
    routed = make("gcn", True, 4, 2, 2, "routed").eval()
    dense = make("gcn", True, 4, 2, 2, "all_nodes").eval()
    x = torch.randn(molecules.num_nodes, DIM, dtype=torch.float64)
    assert torch.equal(run(routed, x, molecules, True)[0], run(dense, x, molecules, True)[0])


def test_mean_divides_by_the_number_of_experts(molecules):
    x = torch.randn(molecules.num_nodes, DIM, dtype=torch.float64)
    by_sum = run(make("gcn", False, 4, 2, 2, "routed"), x, molecules, False)[0]
    by_mean = run(make("gcn", False, 4, 2, 2, "routed", combine="mean"), x, molecules, False)[0]
    torch.testing.assert_close(by_mean * 4, by_sum)


def test_a_two_hop_graph_replaces_the_square_on_plain_graphs(molecules):
    conv = make("gcn", False, 1, 0, 1, "none")
    x = torch.randn(molecules.num_nodes, DIM, dtype=torch.float64)
    wide = ops.two_hop_graph(molecules.graph)
    expected = torch.nn.functional.linear(
        ops.aggregate(wide.gcn_norm(), x), conv.experts.linear.weight[0], conv.experts.linear.bias[0]
    )
    torch.testing.assert_close(conv(x, molecules.graph, wide)[0], expected)


def test_one_expert_narrows_before_it_sums(molecules):
    conv = GMoEConv(DIM, 2, num_experts=1, norm="none").double()
    x = torch.randn(molecules.num_nodes, DIM, dtype=torch.float64)
    linear = conv.experts.linear
    expected = ops.aggregate(molecules.graph.gcn_norm(), x) @ linear.weight[0].T + linear.bias[0]
    torch.testing.assert_close(conv(x, molecules.graph)[0], expected)


def test_one_expert_has_no_gate_and_no_loss(molecules):
    conv = GMoEConv(DIM, OUT, num_experts=1)
    assert conv.gate is None
    y, aux = conv(torch.randn(molecules.num_nodes, DIM), molecules.graph)
    assert y.shape == (molecules.num_nodes, OUT) and aux.item() == 0.0


@pytest.mark.parametrize("norm", ["routed", "all_nodes"])
def test_same_seed_same_bits(norm, molecules):
    results = []
    for _ in range(2):
        conv = make("gcn", True, 4, 2, 2, norm).float()
        torch.manual_seed(5)
        x = torch.randn(molecules.num_nodes, DIM, requires_grad=True)
        y, aux = run(conv, x, molecules, True)
        (y.square().sum() + aux).backward()
        results.append([y, aux, x.grad] + [p.grad for p in conv.parameters()])
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("norm", ["routed", "all_nodes", "none"])
@pytest.mark.parametrize("num_nodes", [0, 1, 3])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("base", ["gcn", "sage", "gin"])
@pytest.mark.parametrize("k", [1, 2])
def test_graphs_without_edges(base, k, training, num_nodes, norm):
    empty = torch.zeros(0, dtype=torch.int64)
    graph = Graph.from_edge_index(empty.view(2, 0), num_nodes, edge_type=empty, num_edge_types=60)
    pairs = torch.zeros(1, 2, dtype=torch.int64)
    two_hop = Graph.from_edge_index(empty.view(2, 0), num_nodes, edge_type=empty, num_edge_types=1)
    for bond_dims in (None, BOND_DIMS):
        conv = GMoEConv(DIM, OUT, num_experts=4, num_hop1=2, k=k, base=base, bond_dims=bond_dims, norm=norm).train(
            training
        )
        x = torch.randn(num_nodes, DIM, requires_grad=True)
        wide = (two_hop, pairs) if bond_dims else ()
        y, aux = conv(x, graph, *wide)
        (y.sum() + aux).backward()
        assert y.shape == (num_nodes, OUT)
        assert y.isfinite().all() and aux.isfinite() and x.grad.isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in conv.parameters())


def test_state_goes_through_safetensors(molecules):
    conv = make("gin", True, 4, 2, 2, "routed").float().eval()
    again = GMoEConv(DIM, OUT, conv.config).eval()
    again.load_state_dict(load(save(conv.state_dict())))
    x = torch.randn(molecules.num_nodes, DIM)
    assert torch.equal(run(conv, x, molecules, True)[0], run(again, x, molecules, True)[0])


def test_expert_load_is_the_share_of_slots(molecules):
    conv = make("gcn", False, 4, 4, 2, "none").float()
    assert conv.expert_load().tolist() == [0.25] * 4
    x = torch.randn(molecules.num_nodes, DIM)
    run(conv, x, molecules, False)
    _, index = routing_of(conv, x)
    expected = torch.stack([(index == e).sum() for e in range(4)]) / index.numel()
    torch.testing.assert_close(conv.expert_load(), expected)


def test_inactive_parameters_are_those_of_the_experts_not_chosen():
    conv = GMoEConv(DIM, OUT, num_experts=4, k=1)
    one_expert = DIM * OUT + OUT + 2 * OUT
    assert conv.inactive_parameters() == 3 * one_expert
    assert GMoEConv(DIM, OUT, num_experts=1).inactive_parameters() == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"k": 5}, "'k' in [1, 4]"),
        ({"k": 0}, "'k' in [1, 4]"),
        ({"num_hop1": 5}, "'num_hop1' in [0, 4]"),
        ({"base": "gat"}, "'base' to be 'gcn' or 'gin' or 'sage'"),
        ({"norm": "batch"}, "'norm' to be 'routed' or"),
        ({"combine": "max"}, "'combine' to be 'sum' or"),
        ({"in_dim": 0}, "of at least 1"),
    ],
)
def test_wrong_options_are_named(options, text):
    given = {"in_dim": 3, "out_dim": 3, "num_experts": 4, "k": 2} | options
    with pytest.raises(ValueError) as error:
        GMoEConv(**given)
    assert text in str(error.value)


@pytest.mark.parametrize("k", [1, 2])
def test_wrong_inputs_are_named(k, molecules):
    conv = GMoEConv(DIM, OUT, num_experts=4, num_hop1=2, k=k, bond_dims=BOND_DIMS)
    x = torch.randn(molecules.num_nodes, DIM)
    with pytest.raises(ValueError, match="expected 'x' of shape"):
        conv(x[:-1], molecules.graph)
    with pytest.raises(ValueError, match="need 'two_hop' and 'pair_types'"):
        conv(x, molecules.graph)
    with pytest.raises(ValueError, match="expected 'graph' with 60 edge types, got 0"):
        conv(x, Graph.from_edge_index(molecules.edge_index, molecules.num_nodes))
    with pytest.raises(ValueError, match="expected 'two_hop' with"):
        conv(x, molecules.graph, molecules.two_hop, molecules.pair_types[:-1])
