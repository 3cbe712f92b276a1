"""An epoch on bags of words, training and evaluation, against dense features and against plain PyTorch.

Plain is the network as users of PyG write it: dense features, a dense product, and a sparse product over the edges.
The process keeps freed memory, as that of gmoe_ext.train does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from gmoe_ext import FeatureRows, data
from gmoe_ext.data import NodeData
from gmoe_ext.data.synthetic import communities
from gmoe_ext.distill import StudentTargets, student_inputs
from gmoe_ext.errors import DataError
from gmoe_ext.models.gnn import NodeGNN
from gmoe_ext.train.config import Config
from gmoe_ext.train.device import keep_freed_memory
from gmoe_ext.train.fit_state import Task
from gmoe_ext.train.tasks.distill import build_student, resolve_protocol
from gmoe_ext.train.tasks.node import NodeTask, build_gnn
from gmoe_ext.train.tasks.scene import Scene
from gmoe_ext.train.tasks.student import build_task

from ..rivals import sparse
from . import inputs, parity
from .claim import Experiment, Missing, Variant, Variants, speedup
from .parity import first_step
from .settings import Settings
from .training import epoch, routed


class Size(NamedTuple):
    """A data set as large as a real one, for machines without it."""

    nodes: int
    edges: int
    features: int
    values: int
    classes: int


SIZES = {
    "coauthor_cs": Size(18_333, 163_788, 6_805, 60, 15),
    "coauthor_physics": Size(34_493, 495_924, 8_415, 33, 5),
    "cora_planetoid": Size(2_708, 10_556, 1_433, 18, 7),
    "amazon_photo": Size(7_487, 238_086, 745, 259, 8),
}
# By data set: teacher over dense and over plain, student over dense.
TARGETS = {
    "coauthor_cs": (10.0, 10.0, 8.0),
    "coauthor_physics": (10.0, 10.0, 8.0),
    "cora_planetoid": (3.0, 3.0, 3.0),
    "amazon_photo": (1.0, 1.0, 1.0),
}


def experiments(settings: Settings) -> list[Experiment]:
    """The teacher and the RbM student of each data set's recipe."""
    found = []
    for name, (over_dense, over_plain, student) in TARGETS.items():
        teacher = f"features/{name} sage"
        claims = (
            speedup(f"{teacher}/dense", "an epoch of the teacher with dense features", "dense", over_dense),
            speedup(f"{teacher}/plain", "an epoch of the teacher in plain PyTorch", "plain", over_plain),
        )
        found.append(Experiment(teacher, partial(teachers, settings, name), claims, gradients=True))
        rbm = f"features/{name} rbm"
        claim = speedup(f"{rbm}/dense", "an epoch of RbM with dense features", "dense", student)
        found.append(Experiment(rbm, partial(students, settings, name), (claim,), gradients=True))
    return found


def teachers(settings: Settings, name: str) -> Variants:
    """Prepare an epoch of the recipe's teacher in three forms."""
    keep_freed_memory()
    config, nodes = _config(settings, name), _nodes(settings, name)
    dense = dataclasses.replace(nodes, x=_dense(nodes))
    ours, before = _teacher(config, nodes), _teacher(config, dense)
    plain = PlainSage(cast(NodeGNN, _teacher(config, dense).model), config.teacher.dropout, dense)
    expected = before.model.eval()(dense.x, dense.graph).logits
    parity.same(expected)(plain.eval()(dense.x))
    return {
        "ours": Variant(partial(_whole_epoch, ours)),
        "dense": _beside(ours, before, nodes),
        "plain": Variant(_plain_epoch(plain, dense, config)),
    }


def students(settings: Settings, name: str) -> Variants:
    """Prepare an epoch of the recipe's RbM with random positions and targets."""
    keep_freed_memory()
    config, nodes = _config(settings, name), _nodes(settings, name)
    ours, before = _student(config, nodes), _student(config, dataclasses.replace(nodes, x=_dense(nodes)))
    return {"ours": Variant(partial(_whole_epoch, ours)), "dense": _beside(ours, before, nodes)}


def _beside(ours: Task, before: Task, nodes: NodeData) -> Variant | Missing:
    """Prepare the epoch with dense features, after comparing the first steps."""
    if not isinstance(nodes.x, FeatureRows):
        return Missing("these features are not sparse: both would be the same")
    parity.same_step(first_step(before))(first_step(ours))
    return Variant(partial(_whole_epoch, before))


class PlainSage(nn.Module):
    """SAGE by plain PyTorch, with the weights of ours: transform, then average over a node and its neighbours."""

    def __init__(self, model: NodeGNN, dropout: float, nodes: NodeData) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for conv in model.convs():
            weight, bias = conv.experts.linear.weight.detach()[0], conv.experts.linear.bias.detach()[0]
            layer = nn.Linear(weight.shape[1], weight.shape[0])
            layer.weight.data, layer.bias.data = weight.clone(), bias.clone()
            self.layers.append(layer)
        self.mean = sparse.csr(nodes.graph.mean_norm(add_self_loops=True), torch.int64)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        for depth, layer in enumerate(self.layers, start=1):
            x = sparse.multiply_sum(self.mean, x @ layer.weight.T) + layer.bias
            if depth < len(self.layers):
                x = functional.dropout(functional.relu(x), self.dropout, self.training)
        return x


def _plain_epoch(model: PlainSage, nodes: NodeData, config: Config) -> Callable[[], None]:
    train, x = config.teacher_train(), nodes.x
    assert isinstance(x, Tensor)
    optimizer = torch.optim.Adam(model.parameters(), lr=train.lr, weight_decay=train.weight_decay, fused=True)

    def run() -> None:
        model.train()
        functional.cross_entropy(model(x)[nodes.train_idx], nodes.y[nodes.train_idx]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.eval()
        with torch.no_grad():
            right = model(x).argmax(1) == nodes.y
        for part in (nodes.val_idx, nodes.test_idx):
            right[part].float().mean().item()

    return run


def _whole_epoch(task: Task) -> None:
    epoch(task)
    task.model.eval()
    with torch.no_grad():
        task.evaluate()


def _teacher(config: Config, nodes: NodeData) -> NodeTask:
    torch.manual_seed(0)
    assert config.teacher.model is not None
    model = build_gnn(config.teacher.model, config.teacher, nodes)
    return NodeTask("teacher", model, Scene.of(config, nodes), config.teacher_train())


def _student(config: Config, nodes: NodeData) -> Task:
    scene = Scene.of(config, nodes)
    rows = student_inputs(nodes.x, inputs.normal(nodes.num_nodes, config.distill.position_dim, seed=1))
    torch.manual_seed(0)
    student = build_student(config, nodes, rows.shape[1])
    targets = StudentTargets(inputs.normal(nodes.num_nodes, nodes.num_classes, seed=2))
    return routed(build_task(student, scene, rows, targets, config))


def _config(settings: Settings, name: str) -> Config:
    from gmoe_ext.train.parse import load_recipe  # its parser is missing on a machine lent for its GPU

    config = load_recipe(f"{name}_rbm_tran")
    if settings.quick:
        student = dataclasses.replace(config.student, hidden_dim=16, num_experts=4)
        teacher = dataclasses.replace(config.teacher, hidden_dim=16)
        config = dataclasses.replace(config, student=student, teacher=teacher)
    return resolve_protocol(config, "random")


def _nodes(settings: Settings, name: str) -> NodeData:
    try:
        if not settings.quick:
            return cast(NodeData, data.load(name))
    except DataError:
        pass
    size = Size(300, 2_000, 400, 8, 4) if settings.quick else SIZES[name]
    made = communities(
        num_nodes=size.nodes, num_edges=size.edges // 2, num_classes=size.classes, communities_per_class=2
    )
    return dataclasses.replace(made, x=inputs.feature_rows(size.nodes, size.features, size.values))


def _dense(nodes: NodeData) -> Tensor:
    return nodes.x.to_dense() if isinstance(nodes.x, FeatureRows) else nodes.x
