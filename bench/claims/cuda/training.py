"""Training steps in both precisions and with the operators on their reference; for the record, nothing is promised."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch

from gmoe_ext import models
from gmoe_ext.data import NodeData
from gmoe_ext.data.synthetic import communities
from gmoe_ext.distill import StudentTargets
from gmoe_ext.train.config import Config, DistillConfig, TrainConfig
from gmoe_ext.train.device import Precision, autocast
from gmoe_ext.train.fit_state import Task
from gmoe_ext.train.tasks.distill import resolve_protocol
from gmoe_ext.train.tasks.molecule import MoleculeTask
from gmoe_ext.train.tasks.node import NodeTask
from gmoe_ext.train.tasks.scene import Inputs, Scene
from gmoe_ext.train.tasks.student import build_task

from .. import inputs, parity
from ..backend import on_reference
from ..claim import Experiment, Variant, Variants
from ..first_step import first_epoch, first_step
from ..molecules import made_up
from ..settings import Settings

MIXTURE = {"num_experts": 8, "num_hop1": 4, "k": 4, "scale_hidden": True}


def experiments(settings: Settings) -> list[Experiment]:
    """GMoE on molecules like ogbg-molhiv's and on a graph like ogbn-arxiv, an RbM student of the latter."""
    tasks = {"molhiv-like gmoe-gcn": molecules, "arxiv-like gmoe-gcn": nodes, "arxiv-like rbm": student}
    return [
        Experiment(f"cuda training/{name}", partial(steps, partial(make, settings)), (), gradients=True)
        for name, make in tasks.items()
    ]


def steps(make: Callable[[], Task]) -> Variants:
    """One step on the first batch, each variant with a model of its own; first losses and gradients are compared."""
    plain = make()
    before = copy.deepcopy(plain)
    mixed = copy.deepcopy(plain)
    with on_reference():
        expected = first_step(before)
    parity.same_step(expected)(first_step(plain))
    slow = _step(before, "float32")

    def reference() -> None:
        with on_reference():
            slow()

    return {
        "float32": Variant(_step(plain, "float32")),
        "bf16-mixed": Variant(_step(mixed, "bf16-mixed")),
        "reference": Variant(reference),
    }


def _step(task: Task, precision: Precision) -> Callable[[], None]:
    task.model.train()
    task.enter_epoch(first_epoch(task))
    batch = next(iter(task.batches(first_epoch(task))))
    device = next(task.model.parameters()).device

    def run() -> None:
        with autocast(device, precision):
            loss = task.losses(task.load(batch))["loss"]
        loss.backward()
        task.optimizer.step()
        task.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            task.after_step()

    return run


def molecules(settings: Settings) -> Task:
    """256 molecules a step."""
    data = made_up(settings.size(1000, 20), seed=0).to(settings.device)
    torch.manual_seed(0)
    shape = {"hidden_dim": settings.size(300, 16), "num_layers": settings.size(5, 2)}
    net = models.build("gmoe-gcn", input="molecule", out_dim=data.num_outputs, **shape, **MIXTURE)
    train = TrainConfig(batch_size=settings.size(256, 8))
    return MoleculeTask("gmoe-gcn", net.to(settings.device), data, train, seed=0, two_hop=True)


def nodes(settings: Settings) -> Task:
    """The whole graph a step."""
    data = _arxiv(settings)
    torch.manual_seed(0)
    shape = {"hidden_dim": settings.size(256, 16), "num_layers": 3, "norm": "batch"}
    net = models.build("gmoe-gcn", in_dim=data.num_features, out_dim=data.num_classes, **shape, **MIXTURE)
    return NodeTask("gmoe-gcn", net.to(settings.device), data, TrainConfig())


def student(settings: Settings) -> Task:
    """All rows a step, routed, on the targets of a teacher that knows nothing."""
    data = _arxiv(settings)
    config = resolve_protocol(Config(train=TrainConfig(batch_size=0), distill=DistillConfig()), data.split)
    torch.manual_seed(0)
    shape = {"hidden_dim": settings.size(256, 16), "num_layers": 3, "num_experts": 8, "k": 3, "norm": "batch"}
    net = models.build("rbm", in_dim=data.num_features, out_dim=data.num_classes, **shape).to(settings.device)
    targets = StudentTargets(inputs.normal(data.num_nodes, data.num_classes, seed=2).to(settings.device))
    scene = Scene.of(config, data)
    task = build_task(net, scene, Inputs.of(scene, data.x), targets, config)
    task.routing = True  # no k-means start: where memories lie changes no time
    return task


def _arxiv(settings: Settings) -> NodeData:
    if settings.quick:
        return communities(num_nodes=300, num_features=16, communities_per_class=2, num_classes=4).to(settings.device)
    made = communities(num_nodes=169_343, num_edges=1_166_243, num_features=128, num_classes=40)
    return made.to(settings.device)
