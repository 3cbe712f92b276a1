"""Measure what GMoE-GCN costs beside its base network: python -m bench.molecules

Training steps and inference of GCN d=300 and of two mixtures at equal nominal cost on molbbbp, batches of 32 molecules,
interleaved in one process with one thread. Printed as Markdown: medians, ratios to GCN, and the ratio that each
mixture's own arithmetic would have if a unit of its work cost what it costs in GCN (docs/papers/gmoe.md).
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn

from gmoe_ext import data, models
from gmoe_ext.data import MoleculeBatch, MoleculeData
from gmoe_ext.models import MoleculeGNN
from gmoe_ext.nn import GMoEConv, NoisyTopKGate
from gmoe_ext.nn.gmoe.experts import BondConvs, Hops
from gmoe_ext.nn.gmoe.noisy_gate import Slots
from gmoe_ext.train.config import TrainConfig
from gmoe_ext.train.tasks.molecule import MoleculeTask

from .timing import CLOCKS, Samples, interleave

BASE = "gcn d=300"
NETWORKS: dict[str, dict[str, int]] = {
    BASE: {"hidden_dim": 300},
    "gmoe-gcn n=8 k=4 d=150": {"hidden_dim": 150, "num_experts": 8, "num_hop1": 4, "k": 4},
    "gmoe-gcn n=4 k=1 d=300": {"hidden_dim": 300, "num_experts": 4, "num_hop1": 4, "k": 1},
}
LAYERS, BATCH, PRODUCTS = 5, 32, "products of " + BASE


class Work(NamedTuple):
    """Work of a network on some batches, all layers together.

    Attributes:
        products: multiply-adds of the layers' matrices, on the source rows that some node reads, and of the gates.
        elements: numbers in messages (bonds, two-hop paths and self loops), in sums and norms of the chosen experts.
    """

    products: float
    elements: float


def build(name: str, molecules: MoleculeData) -> MoleculeTask:
    """Build a task whose gates choose among all experts."""
    torch.manual_seed(0)
    shape = {"input": "molecule", "out_dim": molecules.num_outputs, "num_layers": LAYERS, **NETWORKS[name]}
    net = models.build(name.split()[0], **shape)
    assert isinstance(net, MoleculeGNN)
    for module in net.modules():
        if isinstance(module, NoisyTopKGate):
            nn.init.normal_(module.weight_gate)
    train = TrainConfig(batch_size=BATCH, lr=1e-3)
    return MoleculeTask(name, net, molecules, train, seed=0, two_hop=net.needs_two_hop)


def work(net: MoleculeGNN, batches: Sequence[MoleculeBatch]) -> Work:
    """Count the work of one forward over the batches by the routing that it makes."""
    found: list[Work] = []

    def count(conv: nn.Module, arguments: tuple[Any, ...], _: object) -> None:
        found.append(layer_work(cast(GMoEConv, conv), *arguments))

    hooks = [conv.register_forward_hook(count) for conv in net.convs()]
    with torch.no_grad():
        for batch in batches:
            net(batch)
    for hook in hooks:
        hook.remove()
    return Work(*(sum(column) for column in zip(*found, strict=True)))


def layer_work(conv: GMoEConv, x: torch.Tensor, *hops: Any) -> Work:
    """Count the work of a layer's last forward."""
    nodes, width, experts = len(x), conv.out_dim, conv.experts
    assert isinstance(experts, BondConvs)
    chosen, graphs = conv._chosen, Hops(*hops)
    slots = Slots.all(nodes, 1, x.device) if chosen is None else Slots.chosen(chosen, conv.num_experts)
    gate = 0 if chosen is None else x.numel() * conv.num_experts * (2 if conv.training else 1)
    needed = int(experts.messages.needed(graphs, slots).sum())
    messages = 0
    for graph, _, of_hop in experts.messages._graphs(graphs):
        reads_N = ((slots.index >= of_hop.start) & (slots.index < of_hop.stop)).sum(1)
        messages += int((graph.offsets.diff() * reads_N).sum())
    return Work(needed * x.shape[1] * width + gate, (messages + 2 * slots.index.numel()) * width)


def training(task: MoleculeTask, batches: Sequence[MoleculeBatch]) -> Callable[[], None]:
    """Prepare training steps, each on the next batch."""
    turns = itertools.cycle(batches)

    def run() -> None:
        task.model.train()
        torch.autograd.backward(task.losses(next(turns))["loss"])
        task.optimizer.step()
        task.optimizer.zero_grad(set_to_none=True)

    return run


def inference(task: MoleculeTask, batches: Sequence[MoleculeBatch]) -> Callable[[], None]:
    """Prepare the forward over one batch after another."""
    turns = itertools.cycle(batches)

    def run() -> None:
        task.model.eval()
        with torch.inference_mode():
            task.model(next(turns))

    return run


def products(nodes: int, width: int, gradients: bool) -> Callable[[], None]:
    """Prepare the matrix products of GCN's layers alone."""
    x, weight = (torch.randn(rows, width, requires_grad=gradients) for rows in (nodes, width))
    dy = torch.randn(nodes, width)

    def run() -> None:
        for _ in range(LAYERS):
            y = F.linear(x, weight)
            if gradients:
                torch.autograd.grad(y, (x, weight), dy)

    return run


def bound(mixture: Work, base: Work, share: float) -> float:
    """Weigh the ratios of work by the share of GCN's time that its products take."""
    return share * mixture.products / base.products + (1.0 - share) * mixture.elements / base.elements


def rows(kind: str, samples: dict[str, Samples], works: dict[str, Work]) -> list[str]:
    """Format a line of the table per network."""
    base = samples[BASE].at(0)
    share, lines = samples[PRODUCTS].at(0) / base, []
    for name in NETWORKS:
        ratio, least = samples[name].at(0) / base, bound(works[name], works[BASE], share)
        cells = (f"{1e3 * samples[name].at(0):.2f}", f"{ratio:.2f}", f"{least:.2f}", f"{ratio / least:.2f}")
        lines.append("| " + " | ".join((kind, name, *cells)) + " |")
    return [*lines, f"| {kind} | {PRODUCTS} | {1e3 * samples[PRODUCTS].at(0):.2f} | {share:.2f} | | |"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser("python -m bench.molecules", description="What GMoE-GCN costs beside GCN.")
    parser.add_argument("--root", help="where molbbbp lies (default: GMOE_EXT_DATA, else data)")
    parser.add_argument("--seconds", type=float, default=10.0, help="time for each network (default: 10)")
    parser.add_argument("--batches", type=int, default=16, help="batches that steps take in turn (default: 16)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    molecules = data.load("molbbbp", root=options.root)
    assert isinstance(molecules, MoleculeData)
    tasks = {name: build(name, molecules) for name in NETWORKS}
    ids = list(torch.split(molecules.train_idx, BATCH))[: options.batches]
    batches = [molecules.batch(some, two_hop=True) for some in ids]
    nodes = sum(batch.graph.num_nodes for batch in batches) // len(batches)
    print("| what | network | ms | ratio | bound | ratio / bound |\n|---|---|---|---|---|---|")
    for kind, prepare in (("training step", training), ("inference", inference)):
        calls = {name: (prepare(task, batches), 1.0) for name, task in tasks.items()}
        calls[PRODUCTS] = (products(nodes, 300, kind == "training step"), 1.0)
        works = {}
        for name, task in tasks.items():
            works[name] = work(cast(MoleculeGNN, task.model.train(kind == "training step")), batches)
        print("\n".join(rows(kind, interleave(calls, options.seconds, timer=CLOCKS["cpu"]), works)), flush=True)


if __name__ == "__main__":
    main()
