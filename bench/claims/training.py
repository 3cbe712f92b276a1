"""Training against the same training with the operators on gmoe_ext.reference: an epoch on the CPU, a step on a GPU."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from gmoe_ext import data, models
from gmoe_ext.data import NodeData
from gmoe_ext.data.synthetic import communities
from gmoe_ext.distill import StudentTargets, student_inputs
from gmoe_ext.errors import DataError
from gmoe_ext.train.config import Config, DistillConfig, TrainConfig
from gmoe_ext.train.device import Precision, autocast
from gmoe_ext.train.fit_state import Task
from gmoe_ext.train.tasks.distill import find_targets, resolve_protocol
from gmoe_ext.train.tasks.molecule import MoleculeTask
from gmoe_ext.train.tasks.node import NodeTask
from gmoe_ext.train.tasks.scene import Scene
from gmoe_ext.train.tasks.student import StudentTask, build_task

from . import inputs, parity
from .claim import Experiment, Variant, Variants, speedup
from .parity import first_epoch, first_step, on_reference
from .settings import Settings

MIXTURE = {"num_experts": 8, "num_hop1": 4, "k": 4, "scale_hidden": True}

Make = Callable[[Settings], Task]


def experiments(settings: Settings) -> list[Experiment]:
    """GMoE-GCN on molbbbp with both variants of its BatchNorm, RbM on amazon_photo."""
    found = []
    for norm in ("routed", "all_nodes"):
        name = f"training/molbbbp gmoe-gcn, norm {norm}"
        source = "one epoch of molbbbp GMoE-GCN (n=8, m=4, k=4) >= 3x the same model on reference"
        claim = speedup(f"{name}/reference", source, "reference", 3.0)
        prepare = partial(epochs, settings, partial(molbbbp, norm=norm))
        found.append(Experiment(name, prepare, (claim,), gradients=True))
    name = "training/amazon_photo rbm"
    source = "one epoch of RbM on amazon_photo >= 2x the same model on reference"
    claim = speedup(f"{name}/reference", source, "reference", 2.0)
    found.append(Experiment(name, partial(epochs, settings, amazon_photo), (claim,), gradients=True))
    return found


def molbbbp(settings: Settings, norm: str) -> Task:
    """Build the recipe's network on molbbbp, or on similar molecules where the data are missing."""
    try:
        molecules = inputs.made_up_molecules(40, seed=0) if settings.quick else data.load("molbbbp")
    except DataError:
        molecules = inputs.made_up_molecules(2039, seed=0, name="like molbbbp")
    assert isinstance(molecules, data.MoleculeData)
    net = _molecule_net(settings, molecules, norm=norm, combine="mean")
    return MoleculeTask("gmoe-gcn", net, molecules, TrainConfig(batch_size=32, lr=1e-3), seed=0, two_hop=True)


def _molecule_net(settings: Settings, molecules: data.MoleculeData, **options: str) -> nn.Module:
    torch.manual_seed(0)
    shape = {"hidden_dim": settings.size(300, 16), "num_layers": settings.size(5, 2)}
    return models.build("gmoe-gcn", input="molecule", out_dim=molecules.num_outputs, **shape, **MIXTURE, **options)


def amazon_photo(settings: Settings) -> Task:
    """Build the recipe's student on amazon_photo, or on a graph of its size; positions and teacher are random."""
    from gmoe_ext.train.parse import load_recipe  # its parser is missing on a machine lent for its GPU

    config = load_recipe("amazon_photo_rbm_tran")
    try:
        nodes = _small() if settings.quick else data.load("amazon_photo")
    except DataError:
        nodes = communities(num_nodes=7487, num_edges=119_043, num_features=745)
    assert isinstance(nodes, NodeData)
    if settings.quick:
        student = dataclasses.replace(config.student, hidden_dim=32)
        config = dataclasses.replace(
            config, student=student, teacher=dataclasses.replace(config.teacher, hidden_dim=32)
        )
    config = resolve_protocol(config, nodes.split)
    scene = Scene.of(config, nodes)
    torch.manual_seed(0)
    assert config.teacher.model is not None
    teacher = models.build(
        config.teacher.model, in_dim=nodes.x.shape[1], out_dim=nodes.num_classes, **config.teacher.build_args()
    )
    rows = student_inputs(nodes.x, inputs.normal(len(nodes.x), config.distill.position_dim, seed=1))
    net = models.build("rbm", in_dim=rows.shape[1], out_dim=nodes.num_classes, **config.student.build_args())
    return routed(build_task(net, scene, rows, find_targets(config, scene, teacher), config))


def routed(task: StudentTask) -> StudentTask:
    task.routing = True  # instead of starting from k-means: where memories lie does not change the time
    return task


def _small() -> NodeData:
    return communities(num_nodes=300, num_features=16, communities_per_class=2, num_classes=4)


def epochs(settings: Settings, make: Make) -> Variants:
    """Prepare one epoch of ours and of the reference, each training its own copy of the model.

    An epoch takes too long for a check alone: the losses and gradients of its first batch are compared here.
    """
    ours, before = make(settings), make(settings)
    _compare_first_steps(ours, before)
    return {"ours": Variant(partial(epoch, ours)), "reference": Variant(_on_reference(partial(epoch, before)))}


def _compare_first_steps(ours: Task, before: Task) -> None:
    with on_reference():
        expected = first_step(before)
    parity.same_step(expected)(first_step(ours))


def _on_reference(call: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        with on_reference():
            call()

    return run


def epoch(task: Task) -> None:
    """Take the steps of one epoch as gmoe_ext.train does, without its records."""
    task.model.train()
    task.enter_epoch(first_epoch(task))
    for batch in map(task.load, task.batches(first_epoch(task))):
        task.losses(batch)["loss"].backward()
        _update(task)


def _update(task: Task) -> None:
    task.optimizer.step()
    task.optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        task.after_step()


def gpu_experiments(settings: Settings) -> list[Experiment]:
    """GMoE on molecules like ogbg-molhiv's and on a graph like ogbn-arxiv, an RbM student of the latter; no claims."""
    tasks = {"molhiv-like gmoe-gcn": molhiv_like, "arxiv-like gmoe-gcn": arxiv_like, "arxiv-like rbm": arxiv_like_rbm}
    return [
        Experiment(f"cuda training/{name}", partial(steps, settings, make), (), gradients=True)
        for name, make in tasks.items()
    ]


def steps(settings: Settings, make: Make) -> Variants:
    """Prepare one step on the first batch, each variant with its own model, after comparing the first steps."""
    plain = make(settings)
    before, mixed = copy.deepcopy(plain), copy.deepcopy(plain)
    _compare_first_steps(plain, before)
    return {
        "float32": Variant(_step(plain, "float32")),
        "bf16-mixed": Variant(_step(mixed, "bf16-mixed")),
        "reference": Variant(_on_reference(_step(before, "float32"))),
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
        _update(task)

    return run


def molhiv_like(settings: Settings) -> Task:
    """Build a task of 256 molecules per step."""
    molecules = inputs.made_up_molecules(settings.size(1000, 20), seed=0).to(settings.device)
    net = _molecule_net(settings, molecules).to(settings.device)
    train = TrainConfig(batch_size=settings.size(256, 8))
    return MoleculeTask("gmoe-gcn", net, molecules, train, seed=0, two_hop=True)


def arxiv_like(settings: Settings) -> Task:
    """Build a task that takes the whole graph each step."""
    nodes = _arxiv(settings)
    torch.manual_seed(0)
    shape = {"hidden_dim": settings.size(256, 16), "num_layers": 3, "norm": "batch"}
    net = models.build("gmoe-gcn", in_dim=nodes.num_features, out_dim=nodes.num_classes, **shape, **MIXTURE)
    return NodeTask("gmoe-gcn", net.to(settings.device), Scene.of(Config(), nodes), TrainConfig())


def arxiv_like_rbm(settings: Settings) -> Task:
    """Build a task that routes all rows each step; the teacher's logits are random."""
    nodes = _arxiv(settings)
    config = resolve_protocol(Config(train=TrainConfig(batch_size=0), distill=DistillConfig()), nodes.split)
    torch.manual_seed(0)
    shape = {"hidden_dim": settings.size(256, 16), "num_layers": 3, "num_experts": 8, "k": 3, "norm": "batch"}
    net = models.build("rbm", in_dim=nodes.num_features, out_dim=nodes.num_classes, **shape).to(settings.device)
    targets = StudentTargets(inputs.normal(nodes.num_nodes, nodes.num_classes, seed=2).to(settings.device))
    scene = Scene.of(config, nodes)
    return routed(build_task(net, scene, nodes.x, targets, config))


def _arxiv(settings: Settings) -> NodeData:
    if settings.quick:
        return _small().to(settings.device)
    made = communities(num_nodes=169_343, num_edges=1_166_243, num_features=128, num_classes=40)
    return made.to(settings.device)
