"""The molecule layer, and on a GPU a whole molecule network, against the published and the plain PyG form.

The layer: 26,000 atoms, 54,000 bonds in both directions, 75,000 two-hop paths, d=300, n=8 (4+4), k=4.
"""

from __future__ import annotations

from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from gmoe_ext import models
from gmoe_ext.data import MoleculeBatch
from gmoe_ext.models import MoleculeGNN
from gmoe_ext.nn import ExpertBatchNorm, GMoEConv, NoisyTopKGate

from ..rivals.molecules import DenseMixture, PlainNetwork
from . import inputs, parity
from .claim import Experiment, Variant, Variants, cost, optional, speedup
from .inputs import ATOMS, made_up_molecules
from .parity import on_reference
from .settings import Settings, compiled

NUM_EXPERTS, NUM_HOP1, K = 8, 4, 4
M = TypeVar("M", bound=nn.Module)


def experiments(settings: Settings) -> list[Experiment]:
    """Forward of a layer in evaluation."""
    graphs, dim = settings.size(1084, 6), settings.size(300, 20)
    name = f"molecule layer/{graphs * ATOMS} atoms, d={dim}"
    claims = (
        speedup(f"{name}/eager", "molecule layer >= 12x naive eager", "eager", 12.0),
        speedup(f"{name}/torch.compile", "molecule layer >= 3x torch.compile", "torch.compile", 3.0),
    )
    return [Experiment(name, partial(evaluation, settings, graphs, dim), claims)]


def evaluation(settings: Settings, graphs: int, dim: int) -> Variants:
    """Prepare ours, the same layer on the reference, and the published form."""
    batch = made_up_molecules(graphs, seed=0).batch(torch.arange(graphs), two_hop=True)
    torch.manual_seed(0)
    conv = _trained(GMoEConv(dim, dim, num_experts=NUM_EXPERTS, num_hop1=NUM_HOP1, k=K, bond_dims=(5, 6, 2)))
    x = inputs.normal(batch.graph.num_nodes, dim, seed=1)

    def ours() -> Tensor:
        y: Tensor = conv(x, batch.graph, batch.two_hop, batch.pair_types)[0]
        return y

    def before() -> Tensor:
        with on_reference():
            return ours()

    right = parity.same(before())
    dense = DenseMixture(conv, batch)
    return {
        "ours": Variant(ours, right),
        "ours on reference": Variant(before, right),
        "eager": Variant(lambda: dense(x), right),
        "torch.compile": optional(lambda: Variant(partial(compiled(settings, dense), x), right)),
    }


def _trained(net: M) -> M:
    """Make a network look trained: gates that choose, running statistics that differ from the initial ones."""
    for module in net.modules():
        if isinstance(module, NoisyTopKGate):
            nn.init.normal_(module.weight_gate)
        if isinstance(module, ExpertBatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return net.eval()


def gpu_experiments(settings: Settings) -> list[Experiment]:
    """A batch of molecules through 8 experts of width 150, 4 chosen, beside a base network of width 300."""
    graphs = settings.size(1084, 6)
    name = f"cuda inference/{graphs * ATOMS} atoms"
    source = "GMoE inference at equal FLOPs <= 0.83x of the base network in plain PyG style (paper: 30.2 / 36.3 ms)"
    claim = cost(f"{name}/base", source, "base, plain PyG style", 0.83, "gmoe-gcn")
    return [Experiment(name, partial(gpu_evaluation, settings, graphs), (claim,))]


def gpu_evaluation(settings: Settings, graphs: int) -> Variants:
    """Prepare our mixture and base network, and the base network as users of PyG write it."""
    batch = made_up_molecules(graphs, seed=0).to(settings.device).batch(torch.arange(graphs), two_hop=True)
    shape = {"input": "molecule", "out_dim": 1, "num_layers": 5, "hidden_dim": settings.size(300, 16)}
    mixture = _network("gmoe-gcn", num_experts=8, num_hop1=4, k=4, scale_hidden=True, **shape).to(settings.device)
    base = _network("gcn", **shape).to(settings.device)
    plain = PlainNetwork(base, batch)
    right_mixture, right_base = (_expected(net, batch) for net in (mixture, base))
    return {
        "gmoe-gcn": Variant(lambda: mixture(batch).logits, parity.same(right_mixture)),
        "base": Variant(lambda: base(batch).logits, parity.same(right_base)),
        "base, plain PyG style": Variant(lambda: plain(batch.node_feat), parity.same(right_base)),
    }


def _network(name: str, **options: object) -> MoleculeGNN:
    torch.manual_seed(0)
    net = models.build(name, **options)
    assert isinstance(net, MoleculeGNN)
    return _trained(net)


def _expected(net: MoleculeGNN, batch: MoleculeBatch) -> Tensor:
    with on_reference():
        logits: Tensor = net(batch).logits
        return logits
