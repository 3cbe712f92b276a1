"""The molecule layer: 26,000 atoms, 54,000 bonds both ways, 75,000 two-hop paths, d=300, n=8 (4+4), k=4."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from gmoe_ext.data import MoleculeBatch
from gmoe_ext.nn import GMoEConv

from ..rivals.molecule_layer import DenseMixture
from . import inputs, parity
from .backend import on_reference
from .claim import Experiment, Variant, Variants, optional, speedup
from .compiled import compiled
from .molecules import ATOMS, made_up
from .settings import Settings

NUM_EXPERTS, NUM_HOP1, K = 8, 4, 4


def experiments(settings: Settings) -> list[Experiment]:
    """Forward in evaluation."""
    graphs, dim = settings.size(1084, 6), settings.size(300, 20)
    name = f"molecule layer/{graphs * ATOMS} atoms, d={dim}"
    claims = (
        speedup(f"{name}/eager", "molecule layer >= 12x naive eager", "eager", 12.0),
        speedup(f"{name}/torch.compile", "molecule layer >= 3x torch.compile", "torch.compile", 3.0),
    )
    return [Experiment(name, partial(evaluation, settings, graphs, dim), claims)]


def layer(dim: int) -> GMoEConv:
    """A layer as training leaves it: gates that choose, statistics that are not those of the start."""
    torch.manual_seed(0)
    conv = GMoEConv(dim, dim, num_experts=NUM_EXPERTS, num_hop1=NUM_HOP1, k=K, bond_dims=(5, 6, 2))
    assert conv.gate is not None and conv.norm is not None
    nn.init.normal_(conv.gate.weight_gate)
    conv.norm.running_mean.normal_()
    conv.norm.running_var.uniform_(0.5, 2.0)
    return conv.eval()


def evaluation(settings: Settings, graphs: int, dim: int) -> Variants:
    """Ours, the same layer on the reference, the published form."""
    batch = made_up(graphs, seed=0).batch(torch.arange(graphs), two_hop=True)
    conv = layer(dim)
    x = inputs.normal(batch.graph.num_nodes, dim, seed=1)
    ours = partial(_forward, conv, x, batch)
    with on_reference():
        right = parity.same(ours())
    dense = DenseMixture(conv, batch)

    def before() -> Tensor:
        with on_reference():
            return ours()

    return {
        "ours": Variant(ours, right),
        "ours on reference": Variant(before, right),
        "eager": Variant(lambda: dense(x), right),
        "torch.compile": optional(lambda: _compiled(settings, dense, x, right)),
    }


def _forward(conv: GMoEConv, x: Tensor, batch: MoleculeBatch) -> Tensor:
    y: Tensor = conv(x, batch.graph, batch.two_hop, batch.pair_types)[0]
    return y


def _compiled(settings: Settings, dense: DenseMixture, x: Tensor, right: Callable[[Tensor], None]) -> Variant:
    run = compiled(settings, dense)
    return Variant(lambda: run(x), right)
