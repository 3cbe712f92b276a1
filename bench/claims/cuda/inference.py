"""A GMoE network's answers against those of its base network in plain PyG style, at equal products."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from gmoe_ext import models
from gmoe_ext.data import MoleculeBatch
from gmoe_ext.models import MoleculeGNN
from gmoe_ext.nn import ExpertBatchNorm, NoisyTopKGate

from ...rivals.base_network import PlainNetwork
from .. import parity
from ..backend import on_reference
from ..claim import Experiment, Variant, Variants, cost
from ..molecules import ATOMS, made_up
from ..settings import Settings


def experiments(settings: Settings) -> list[Experiment]:
    """A batch of molecules: 8 experts of width 150, 4 chosen, beside one of width 300."""
    graphs = settings.size(1084, 6)
    name = f"cuda inference/{graphs * ATOMS} atoms"
    source = "GMoE inference at equal FLOPs <= 0.83x of the base network in plain PyG style (paper: 30.2 / 36.3 ms)"
    claim = cost(f"{name}/base", source, "base, plain PyG style", 0.83, "gmoe-gcn")
    return [Experiment(name, partial(evaluation, settings, graphs), (claim,))]


def evaluation(settings: Settings, graphs: int) -> Variants:
    """The mixture and the base network of ours, and the base network as PyG's users write it."""
    batch = made_up(graphs, seed=0).to(settings.device).batch(torch.arange(graphs), two_hop=True)
    shape = {"input": "molecule", "out_dim": 1, "num_layers": 5, "hidden_dim": settings.size(300, 16)}
    mixture = _trained("gmoe-gcn", num_experts=8, num_hop1=4, k=4, scale_hidden=True, **shape).to(settings.device)
    base = _trained("gcn", **shape).to(settings.device)
    plain = PlainNetwork(base, batch)
    right_mixture, right_base = (_expected(net, batch) for net in (mixture, base))
    return {
        "gmoe-gcn": Variant(lambda: mixture(batch).logits, parity.same(right_mixture)),
        "base": Variant(lambda: base(batch).logits, parity.same(right_base)),
        "base, plain PyG style": Variant(lambda: plain(batch.node_feat), parity.same(right_base)),
    }


def _trained(name: str, **options: object) -> MoleculeGNN:
    """A network as training leaves it: gates that choose, statistics that are not those of the start."""
    torch.manual_seed(0)
    net = models.build(name, **options)
    assert isinstance(net, MoleculeGNN)
    for module in net.modules():
        if isinstance(module, NoisyTopKGate):
            nn.init.normal_(module.weight_gate)
        if isinstance(module, ExpertBatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return net.eval()


def _expected(net: MoleculeGNN, batch: MoleculeBatch) -> Tensor:
    with on_reference():
        logits: Tensor = net(batch).logits
        return logits
