"""Base networks on nodes: the published teachers, layer by layer."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F

from gmoe_ext import Graph, models
from gmoe_ext.errors import ConfigError
from tests.nn.naive_gmoe import Molecules


def nodes():
    return _nodes(torch.empty(0).device)


@functools.cache
def _nodes(_device):
    return Molecules(num_nodes=20, num_bonds=24, seed=7)


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
        ({"norm": "layer"}, "'norm' to be one of"),
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
