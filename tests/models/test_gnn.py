"""Graph networks on nodes: the base networks layer by layer; balance loss, width and counts of GMoE networks."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, save

from gmoe_ext import Graph, models, ops
from gmoe_ext.errors import ConfigError
from tests.nn.naive_gmoe import Molecules


def nodes():
    return _nodes(torch.empty(0).device)


@functools.cache
def _nodes(_device):
    return Molecules(num_nodes=40, num_bonds=60, seed=7)


BASES = ["gcn", "gin", "sage"]


def adjacency(base):
    """Dense weights of one hop."""
    a = torch.zeros(nodes().num_nodes, nodes().num_nodes)
    a[nodes().edge_index[1], nodes().edge_index[0]] = 1.0
    a.fill_diagonal_(1.0)
    degree = a.sum(1)
    return a / degree[:, None] if base == "sage" else a / degree.outer(degree).sqrt()


@pytest.mark.parametrize("base", ["gcn", "sage"])
def test_layers_with_relu_between_them(base):
    net = models.build(base, in_dim=6, hidden_dim=8, out_dim=3, num_layers=3, dropout=0.5).eval()
    x, h = torch.randn(nodes().num_nodes, 6), None
    for conv in net.convs():
        h = x if h is None else F.relu(h)
        linear = conv.experts.linear
        h = adjacency(base) @ h @ linear.weight[0].T + linear.bias[0]
    output = net(x, nodes().graph)
    torch.testing.assert_close(output.logits, h)
    assert output.aux.item() == 0.0


def test_batch_norm_stands_between_layers_and_not_after_the_last():
    net = models.build("gcn", in_dim=6, hidden_dim=8, out_dim=3, num_layers=2, dropout=0.0, norm="batch")
    first, last = net.convs()
    assert first.norm is not None and last.norm is None
    x = torch.randn(nodes().num_nodes, 6)
    plain = torch.nn.BatchNorm1d(8)
    h = F.relu(plain(adjacency("gcn") @ x @ first.experts.linear.weight[0].T + first.experts.linear.bias[0]))
    expected = adjacency("gcn") @ h @ last.experts.linear.weight[0].T + last.experts.linear.bias[0]
    torch.testing.assert_close(net(x, nodes().graph).logits, expected)
    torch.testing.assert_close(first.norm.running_var[0], plain.running_var)


def test_dropout_acts_in_training_only():
    net = models.build("gcn", in_dim=6, hidden_dim=64, out_dim=3, num_layers=2, dropout=0.5)
    x = torch.randn(nodes().num_nodes, 6)
    assert not torch.equal(net(x, nodes().graph).logits, net(x, nodes().graph).logits)
    net.eval()
    assert torch.equal(net(x, nodes().graph).logits, net(x, nodes().graph).logits)


@pytest.mark.parametrize("base", BASES)
def test_a_base_network_counts_all_its_parameters_active(base):
    active, total = models.build(base, in_dim=6, hidden_dim=8, out_dim=3, num_layers=2).num_parameters()
    assert active == total
    if base != "gin":
        assert total == 6 * 8 + 8 + 8 * 3 + 3


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("input", ["node", "molecule"])
def test_config_rebuilds_the_model(base, input):
    net = models.build(base, in_dim=6, hidden_dim=8, out_dim=3, num_layers=2, input=input)
    again = models.build(net.name, **net.config)
    again.load_state_dict(net.state_dict())
    assert again.config == net.config and again.name == base


@pytest.mark.parametrize("base", BASES)
def test_learns_to_repeat_labels(base):
    torch.manual_seed(0)
    net = models.build(base, in_dim=6, hidden_dim=32, out_dim=3, num_layers=2, dropout=0.0)
    x, y = torch.randn(nodes().num_nodes, 6), torch.randint(0, 3, (nodes().num_nodes,))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.03)
    for _ in range(80):
        loss = F.cross_entropy(net(x, nodes().graph).logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3


def test_one_node_without_edges():
    graph = Graph.from_edge_index(torch.zeros(2, 0, dtype=torch.int64), num_nodes=1)
    for base in BASES:
        net = models.build(base, in_dim=6, hidden_dim=8, out_dim=3, num_layers=2, norm="batch")
        assert net(torch.randn(1, 6), graph).logits.isfinite().all()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_layers": 0}, "'num_layers' of at least 1"),
        ({"dropout": 1.0}, r"'dropout' in \[0, 1\)"),
        ({"norm": "layer"}, "'norm' to be 'none' or"),
        ({"in_dim": None}, "'in_dim'"),
        ({"input": "edges"}, "'input' to be"),
        ({"num_experts": 4}, "unexpected keyword argument 'num_experts'"),
    ],
)
def test_wrong_options_are_config_errors(options, text):
    given = {"in_dim": 6, "hidden_dim": 8, "out_dim": 3, "num_layers": 2} | options
    with pytest.raises(ConfigError, match=text):
        models.build("gcn", **given)


def test_unknown_models_are_named_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown model 'gnc'; known models: .*gmoe-gcn"):
        models.build("gnc")


NAMES = ["gmoe-gcn", "gmoe-gin", "gmoe-sage"]


def make(name="gmoe-gcn", **options):
    given = {"in_dim": 6, "hidden_dim": 8, "out_dim": 3, "num_layers": 2, "num_experts": 4, "num_hop1": 2, "k": 2}
    return models.build(name, **(given | options))


@pytest.mark.parametrize("over", ["mean", "sum"])
def test_aux_is_lambda_times_the_layers_losses(over):
    net, x = make(aux_weight=0.5, aux_over=over, dropout=0.0), torch.randn(nodes().num_nodes, 6)
    torch.manual_seed(1)
    output = net(x, nodes().graph)
    torch.manual_seed(1)
    first, last = net.convs()
    h, loss_first = first(x, nodes().graph)
    _, loss_last = last(F.relu(h), nodes().graph)
    total = loss_first + loss_last
    torch.testing.assert_close(output.aux, 0.5 * (total / 2 if over == "mean" else total))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("norm", ["none", "batch", "routed", "all_nodes"])
def test_config_and_safetensors_rebuild_the_model(name, norm):
    net = make(name, norm=norm)
    net(torch.randn(nodes().num_nodes, 6), nodes().graph)
    again = models.build(net.name, **net.config)
    again.load_state_dict(load(save(net.state_dict())))
    net.eval(), again.eval()
    x = torch.randn(nodes().num_nodes, 6)
    assert torch.equal(net(x, nodes().graph).logits, again(x, nodes().graph).logits)


def test_batch_is_another_name_of_routed():
    assert [c.config.norm for c in make(norm="batch").convs()] == [c.config.norm for c in make(norm="routed").convs()]


@pytest.mark.parametrize(("k", "width"), [(1, 300), (2, 212), (4, 150)])
def test_scaled_width_keeps_the_cost_of_the_base_network(k, width):
    net = make(hidden_dim=300, num_experts=8, k=k, scale_hidden=True)
    first, _ = net.convs()
    assert first.out_dim == width and net.config["hidden_dim"] == 300


def test_active_parameters_count_k_of_n_experts():
    active, total = make(k=1).num_parameters()
    experts = 4 * (6 * 8 + 8 + 8 * 3 + 3)
    gates = 2 * 4 * (6 + 8)
    assert total == experts + gates and active == experts // 4 + gates


def test_expert_load_is_the_mean_over_layers():
    net = make()
    net(torch.randn(nodes().num_nodes, 6), nodes().graph)
    share = net.expert_load()
    assert share.shape == (4,) and abs(share.sum().item() - 1) < 1e-6
    torch.testing.assert_close(share, torch.stack([c.expert_load() for c in net.convs()]).mean(0))


def test_same_seed_same_training():
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        net, x, y = make(norm="routed"), torch.randn(nodes().num_nodes, 6), torch.randint(0, 3, (nodes().num_nodes,))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(5):
            output = net(x, nodes().graph)
            optimizer.zero_grad()
            (F.cross_entropy(output.logits, y) + output.aux).backward()
            optimizer.step()
        weights.append(net.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize("name", NAMES)
def test_training_spreads_the_load_and_lowers_the_loss(name):
    torch.manual_seed(0)
    net = make(name, hidden_dim=32, dropout=0.0, aux_weight=0.1)
    x = torch.randn(nodes().num_nodes, 6)
    y = ops.aggregate(nodes().graph.gcn_norm(), x)[:, :3].argmax(1)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    losses = []
    for _ in range(80):
        output = net(x, nodes().graph)
        losses.append(F.cross_entropy(output.logits, y).item())
        optimizer.zero_grad()
        (F.cross_entropy(output.logits, y) + output.aux).backward()
        optimizer.step()
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert net.expert_load().min() > 0.05


@pytest.mark.parametrize(
    ("options", "text"),
    [({"k": 5}, r"'k' in \[1, 4\]"), ({"num_hop1": 9}, "'num_hop1'"), ({"aux_over": "max"}, "'aux_over'")],
)
def test_wrong_gmoe_options_are_config_errors(options, text):
    with pytest.raises(ConfigError, match=text):
        make(**options)
