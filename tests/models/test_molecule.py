"""Molecule networks against OGB's composition of encoder, layers, mean pool and head."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gmoe_ext import Graph, models
from gmoe_ext.models.gnn import mean_pool
from gmoe_ext.nn.gmoe.encoders import ATOM_DIMS
from tests.nn.naive_gmoe import Molecules, NaiveGMoE

BASES = ["gcn", "gin", "sage"]


class Batch(NamedTuple):
    """The fields of gmoe_ext.data.MoleculeBatch that a network reads."""

    node_feat: Tensor
    graph: Graph
    two_hop: Graph | None
    pair_types: Tensor | None
    sizes: Tensor


def make_batch(two_hop=True, seed=3):
    torch.manual_seed(seed)
    molecules = Molecules(num_nodes=24, num_bonds=30, seed=seed)
    atoms = torch.stack([torch.randint(0, d, (24,)) for d in ATOM_DIMS], dim=1)
    wide = (molecules.two_hop, molecules.pair_types) if two_hop else (None, None)
    return molecules, Batch(atoms, molecules.graph, *wide, torch.tensor([10, 1, 13]))


@pytest.mark.parametrize("experts", [None, (4, 2, 2)], ids=["base", "mixture"])
@pytest.mark.parametrize("base", BASES)
def test_network_is_ogbs_in_evaluation(base, experts):
    molecules, batch = make_batch()
    options = {"hidden_dim": 6, "out_dim": 2, "num_layers": 3, "input": "molecule"}
    if experts is None:
        net = models.build(base, **options)
    else:
        n, m, k = experts
        net = models.build(f"gmoe-{base}", num_experts=n, num_hop1=m, k=k, **options)
    for _ in range(3):
        net(batch)
    net.double().eval()
    h = net.atoms(batch.node_feat)
    for depth, conv in enumerate(net.convs(), start=1):
        if conv.gate is None:
            gate, index = torch.ones(24, 1, dtype=torch.float64), torch.zeros(24, 1, dtype=torch.int64)
        else:
            gate, index = conv.gate(h)[:2]
        h = NaiveGMoE(conv, bonds=True).eval()(h, molecules, gate, index)
        h = F.relu(h) if depth < 3 else h
    pooled = torch.stack([part.mean(0) for part in h.split(batch.sizes.tolist())])
    torch.testing.assert_close(net(batch).logits, net.head(pooled), rtol=2e-5, atol=2e-6)


def test_one_prediction_per_molecule_and_task():
    _, batch = make_batch()
    output = models.build("gmoe-gcn", input="molecule", hidden_dim=8, out_dim=12, num_layers=2)(batch)
    assert output.logits.shape == (3, 12) and output.aux.shape == ()


def test_every_parameter_gets_a_gradient():
    _, batch = make_batch()
    for base in BASES:
        net = models.build(f"gmoe-{base}", input="molecule", hidden_dim=8, out_dim=1, num_layers=3, num_hop1=4)
        output = net(batch)
        (output.logits.sum() + output.aux).backward()
        assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_hop_two_experts_ask_for_two_hop_graphs():
    _, batch = make_batch(two_hop=False)
    options = {"input": "molecule", "hidden_dim": 8, "out_dim": 1, "num_layers": 2}
    assert not models.build("gmoe-gcn", **options).needs_two_hop
    net = models.build("gmoe-gcn", num_hop1=0, **options)
    assert net.needs_two_hop
    with pytest.raises(ValueError, match="two_hop=True"):
        net(batch)


def test_mean_pool_of_graphs():
    h = torch.arange(10.0).view(5, 2).requires_grad_()
    pooled = mean_pool(h, torch.tensor([2, 0, 3]))
    assert pooled.tolist() == [[1.0, 2.0], [0.0, 0.0], [6.0, 7.0]]
    pooled.sum().backward()
    torch.testing.assert_close(h.grad[:, 0], torch.tensor([1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3]))


def test_learns_a_property_of_molecules():
    torch.manual_seed(0)
    _, batch = make_batch()
    net = models.build("gmoe-gin", input="molecule", hidden_dim=16, out_dim=1, num_layers=2, dropout=0.0, num_hop1=4)
    y, optimizer = torch.tensor([[1.0], [-1.0], [0.5]]), torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(60):
        output = net(batch)
        loss = F.mse_loss(output.logits, y)
        optimizer.zero_grad()
        (loss + output.aux).backward()
        optimizer.step()
    assert loss.item() < 0.1
