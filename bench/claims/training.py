"""One epoch of training against the same epoch with the operators on gmoe_ext.reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import torch

from gmoe_ext import data, models
from gmoe_ext.data.synthetic import communities
from gmoe_ext.errors import DataError
from gmoe_ext.train.config import Config, TrainConfig
from gmoe_ext.train.fit_state import Task
from gmoe_ext.train.parse import load_recipe
from gmoe_ext.train.tasks.distill import find_targets, resolve_protocol
from gmoe_ext.train.tasks.molecule import MoleculeTask
from gmoe_ext.train.tasks.scene import Inputs, Scene
from gmoe_ext.train.tasks.student import build_task

from . import inputs, parity
from .backend import on_reference
from .claim import Experiment, Variant, Variants, speedup
from .first_step import first_epoch, first_step
from .molecules import made_up
from .settings import Settings


def experiments(settings: Settings) -> list[Experiment]:
    """GMoE-GCN on molbbbp in both readings of its BatchNorm, RbM on amazon_photo."""
    found = []
    for norm in ("routed", "all_nodes"):
        name = f"training/molbbbp gmoe-gcn, norm {norm}"
        claim = speedup(
            f"{name}/reference",
            "one epoch of molbbbp GMoE-GCN (n=8, m=4, k=4) >= 3x the same model on reference",
            "reference",
            3.0,
        )
        prepare = partial(compare, partial(molecule_task, settings, norm))
        found.append(Experiment(name, prepare, (claim,), gradients=True))
    name = "training/amazon_photo rbm"
    source = "one epoch of RbM on amazon_photo >= 2x the same model on reference"
    claim = speedup(f"{name}/reference", source, "reference", 2.0)
    prepare = partial(compare, partial(student_task, settings))
    found.append(Experiment(name, prepare, (claim,), gradients=True))
    return found


def molecule_task(settings: Settings, norm: str) -> Task:
    """The recipe's network on molbbbp, or on molecules like it where the data is not there."""
    try:
        molecules = made_up(40, seed=0) if settings.quick else data.load("molbbbp")
    except DataError:
        molecules = made_up(2039, seed=0, name="like molbbbp")
    assert isinstance(molecules, data.MoleculeData)
    torch.manual_seed(0)
    model = models.build(
        "gmoe-gcn",
        input="molecule",
        out_dim=molecules.num_outputs,
        hidden_dim=settings.size(300, 16),
        num_layers=settings.size(5, 2),
        num_experts=8,
        num_hop1=4,
        k=4,
        norm=norm,
        scale_hidden=True,
        combine="mean",
    )
    return MoleculeTask("gmoe-gcn", model, molecules, TrainConfig(batch_size=32, lr=1e-3), seed=0, two_hop=True)


def student_task(settings: Settings) -> Task:
    """The recipe's student on amazon_photo, or on a graph of its size; positions and teacher are random."""
    config = load_recipe("amazon_photo_rbm_tran")
    try:
        nodes = _small() if settings.quick else data.load("amazon_photo")
    except DataError:
        nodes = communities(num_nodes=7487, num_edges=119_043, num_features=745)
    assert isinstance(nodes, data.NodeData)
    if settings.quick:
        config = _shrunk(config)
    config = resolve_protocol(config, nodes.split)
    scene = Scene.of(config, nodes)
    torch.manual_seed(0)
    assert config.teacher.model is not None
    teacher = models.build(
        config.teacher.model, in_dim=nodes.x.shape[1], out_dim=nodes.num_classes, **config.teacher.build_args()
    )
    rows = torch.cat([nodes.x, inputs.normal(len(nodes.x), config.distill.position_dim, seed=1)], dim=1)
    student = models.build("rbm", in_dim=rows.shape[1], out_dim=nodes.num_classes, **config.student.build_args())
    task = build_task(student, scene, Inputs.of(scene, rows), find_targets(config, scene, teacher), config)
    task.routing = True  # no k-means start: where memories lie changes no time
    return task


def _small() -> data.NodeData:
    return communities(num_nodes=300, num_features=16, communities_per_class=2, num_classes=4)


def _shrunk(config: Config) -> Config:
    student = dataclasses.replace(config.student, hidden_dim=32)
    teacher = dataclasses.replace(config.teacher, hidden_dim=32)
    return dataclasses.replace(config, student=student, teacher=teacher)


def compare(make: Callable[[], Task]) -> Variants:
    """One epoch of ours and of the reference, each training a copy of the model of its own.

    An epoch is too long for a check alone: the losses and gradients of its first batch are compared here.
    """
    ours, before = make(), make()
    with on_reference():
        expected = first_step(before)
    parity.same_step(expected)(first_step(ours))

    def reference() -> None:
        with on_reference():
            epoch(before)

    return {"ours": Variant(partial(epoch, ours)), "reference": Variant(reference)}


def epoch(task: Task) -> None:
    """The steps of one epoch as gmoe_ext.train takes them, without what it records."""
    task.model.train()
    task.enter_epoch(first_epoch(task))
    for batch in map(task.load, task.batches(first_epoch(task))):
        task.losses(batch)["loss"].backward()
        task.optimizer.step()
        task.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            task.after_step()
