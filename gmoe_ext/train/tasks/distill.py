"""Distillation: a GNN teacher, positions, and a student that needs no graph.

Three phases, each kept in the run directory: the teacher's fit, the positions, the student's fit.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ... import checkpoint, models
from ...data import NodeData
from ...distill import (
    ReliableSampler,
    StudentTargets,
    deepwalk,
    extend_positions,
    reliability,
    soft_targets,
    student_inputs,
)
from ...errors import ConfigError
from ...feature_rows import FeatureRows, Features
from ...models.gnn import ExpertGNN
from ...models.registry import Model
from ..config import Config, NetworkConfig
from ..loop import fit
from ..report import Outcome, Trained
from ..run import Run
from .node import build_gnn, fit_gnn
from .scene import Scene, check_scored, load_data
from .student import build_task

# What the paper says, and what the code released with it does. They fill in only what is not set (None), so a recipe
# can mix the two. The released code also reports the best test score over epochs: `test_best` in every result here.
_STUDENT: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {
        "rbm": {"first_layer_dropout": False, "memory": "buffer"},
        "moe": {"first_layer_dropout": False, "variant": "paper", "k": 3},
    },
    "released_code": {
        "rbm": {"first_layer_dropout": True, "memory": "parameter"},
        "moe": {"first_layer_dropout": True, "variant": "released_code", "k": 4},
    },
}
_DISTILL: dict[str, dict[str, Any]] = {
    "paper": {
        "normalized_tau": True,
        "pair_weight": "degree",
        "noise_draws": 10,
        "squared_reliability": True,
        "reset_optimizer": True,
        "batch_weights": 0,
    },
    "released_code": {
        "normalized_tau": False,
        "pair_weight": "equal",
        "noise_draws": 1,
        "squared_reliability": False,
        "power_bin_offset": 0.05,
        "reset_optimizer": False,
        "batch_weights": 4096,
    },
}


@dataclass(frozen=True)
class Distilled:
    """What a distillation made.

    Attributes:
        scene: data of the setting.
        candidates: the networks that could teach, with their fits, in the order of training.
        teacher: the one that did.
        student: the student.
        rows: the student's input of every node, features and then positions, [N, D].
    """

    scene: Scene
    candidates: list[Trained]
    teacher: Trained
    student: Trained
    rows: Features

    @property
    def positions(self) -> Tensor | None:
        """The columns of `rows` that come after the features, if there are any."""
        positions = positions_in(self.rows, self.scene.data)
        return positions if positions.shape[1] else None

    def outcome(self) -> Outcome:
        """Return what the report needs."""
        others = [one for one in self.candidates if one is not self.teacher]
        return Outcome(self.student, self.scene.data, self.teacher, others)


def resolve_protocol(config: Config, split: str) -> Config:
    """Fill in every setting that `distill.protocol` decides and that is not set.

    Args:
        config: as given; not changed.
        split: rule of the data's split; the released code holds out the whole test set of a public one.
    """
    protocol = config.distill.protocol
    student = _fill(config.student, _STUDENT[protocol].get(config.student.model or "", {}))
    data = _fill(config.data, {"heldout_rate": 1.0 if protocol == "released_code" and split == "public" else 0.2})
    return dataclasses.replace(config, data=data, student=student, distill=_fill(config.distill, _DISTILL[protocol]))


def _fill(section: Any, values: dict[str, Any]) -> Any:
    return dataclasses.replace(section, **{k: v for k, v in values.items() if getattr(section, k) is None})


def distill(config: Config, run: Run, device: torch.device) -> Distilled:
    """Train a teacher, find positions, train a student.

    If `model` is set too, that network is trained as well, and the better one of the two teaches.
    """
    data = load_data(config)
    if not isinstance(data, NodeData) or data.metric != "accuracy":
        raise ConfigError(f"data '{config.data.name}': a student is distilled on node data with one class per node")
    check_scored(data)
    run.progress.line("graph", f"{data.name}: {data.summary()}")
    config = resolve_protocol(config, data.split)
    scene = Scene.of(config, data.to(device))
    check_buildable(config, scene)
    run.ready(data)
    candidates = [fit_gnn(*named, scene, config.teacher_train(), run) for named in _teachers(config)]
    teacher = max(candidates, key=lambda one: one.fit.val_best)
    positions = find_positions(config, run, scene)
    rows = student_inputs(scene.data.x, positions, config.distill.position_scale, scene.observed_nodes)
    student = train_student(config, run, scene, teacher.model, rows)
    if not run.dry_run:
        keep_inputs(run, scene, rows)
    return Distilled(scene, candidates, teacher, student, rows)


def _teachers(config: Config) -> list[tuple[str, str, NetworkConfig]]:
    """Return phase, model name and settings of each network that may teach."""
    model, teacher = config.model.name, config.teacher.model
    assert teacher is not None  # see parse.check
    if model is None:
        return [("teacher", teacher, config.teacher)]
    other = f"{teacher}-teacher" if teacher == model else teacher
    return [(model, model, config.model), (other, teacher, config.teacher)]


def find_positions(config: Config, run: Run, scene: Scene) -> Tensor | None:
    """Find DeepWalk positions of all nodes on the observed graph, or read them from the run directory."""
    settings = config.distill
    if not settings.positions:
        return None
    path = run.checkpoint_path("positions")
    if not run.dry_run and (content := run.read(path)) is not None:
        observed: Tensor = content["positions"]
    else:
        observed = deepwalk(
            scene.observed.graph,
            dim=settings.position_dim,
            walk_length=settings.walk_length,
            num_walks=settings.num_walks,
            window=settings.window,
            epochs=settings.walk_epochs,
            seed=config.seed,
        )
        if not run.dry_run:
            checkpoint.save(path, {"positions": observed}, {"phase": "positions", "settings": run.settings})
    observed = observed.to(scene.data.x.device)
    own = settings.position_of == "own"
    if scene.heldout is None and own:
        return observed
    return extend_positions(observed, scene.data.graph, scene.observed_nodes, own)


def positions_in(rows: Features, data: NodeData) -> Tensor:
    """Return the columns of students' inputs that come after the features, [N, P]."""
    if not isinstance(rows, FeatureRows):
        return rows[:, data.num_features :]
    return torch.empty(len(rows), 0, device=rows.device) if rows.dense is None else rows.dense


def keep_inputs(run: Run, scene: Scene, rows: Features) -> None:
    """Save what a packed student needs beside its weights: positions and class names."""
    data = scene.data
    tensors = {"positions": positions_in(rows, data)}
    scalars = {"phase": "inputs", "settings": run.settings, "class_names": list(data.class_names)}
    checkpoint.save(run.checkpoint_path("inputs"), tensors, scalars)


def find_targets(config: Config, scene: Scene, teacher: Model) -> StudentTargets:
    """Return the teacher's soft targets on what training sees, with the sampler of reliable neighbours."""
    settings, data = config.distill, scene.observed
    sampler = None
    if settings.reliable:
        rho = reliability(
            lambda x: soft_targets(teacher, x, data.graph),
            data.x,
            seed=config.seed,
            draws=settings.noise_draws or 1,
            std=settings.noise_std,
            squared=bool(settings.squared_reliability),
            weights=teacher.convs()[0].input_weights() if isinstance(teacher, ExpertGNN) else None,
        )
        sampler = ReliableSampler(
            data.graph,
            rho,
            settings.pair_weight or "degree",
            momentum=settings.power_momentum,
            bins=settings.power_bins,
            warmup=settings.power_warmup,
            bin_offset=settings.power_bin_offset,
        )
    logits = soft_targets(teacher, data.x, data.graph)
    return StudentTargets(logits, sampler, settings.tau, bool(settings.normalized_tau))


def build_student(config: Config, data: NodeData, in_dim: int) -> Model:
    """Build the student, on the CPU."""
    assert config.student.model is not None
    known = models.option_names(config.student.model)
    options = {name: value for name, value in dataclasses.asdict(config.distill).items() if name in known}
    options |= {"in_dim": in_dim, "out_dim": data.num_classes} | config.student.build_args()
    return models.build(config.student.model, **options)


def check_buildable(config: Config, scene: Scene) -> None:
    """Build every network once, rather than find after the teacher's training that the student cannot be built.

    Raises:
        ConfigError: options do not fit each other, or the data.
    """
    for _, name, network in _teachers(config):
        build_gnn(name, network, scene.data)
    positions = config.distill.position_dim if config.distill.positions else 0
    student = build_student(config, scene.data, scene.data.num_features + positions)
    nodes = scene.observed.num_nodes
    if isinstance(student, models.RbM) and (config.student.num_experts or 0) > nodes:
        raise ConfigError(f"student.num_experts: expected at most one per node of training, {nodes}")


def train_student(config: Config, run: Run, scene: Scene, teacher: Model, rows: Features) -> Trained:
    """Fit the student; the pre-training epochs of its experts come before those of `train`."""
    assert config.student.model is not None
    targets = find_targets(config, scene, teacher)
    run.begin(config.student.model)
    student = build_student(config, scene.data, rows.shape[1])
    task = build_task(student.to(rows.device), scene, rows, targets, config)
    settings = dataclasses.replace(config.train, epochs=config.train.epochs + task.pretrain_epochs)
    return Trained(student, fit(task, settings, run))
