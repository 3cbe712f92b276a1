"""Distillation: a GNN teacher, positions, and a student that needs no graph (RbM and the MLP students).

Three phases, each kept in the run directory: the teacher's fit, the positions, the student's fit.
N nodes that training sees, D student inputs.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from ... import models
from ...data import NodeData, metrics
from ...distill import (
    ReliableSampler,
    StudentTargets,
    deepwalk,
    extend_positions,
    kmeans_start,
    reliability,
    soft_targets,
    student_inputs,
)
from ...errors import ConfigError
from ...models.rbm import RbM
from ...nn.losses import krd
from .. import state as checkpoint
from ..config import fingerprint
from ..loop import FitResult, Task, fit
from ..report import Outcome, Trained
from . import load_data
from .node import node_task
from .protocol import resolve

if TYPE_CHECKING:
    from ...models.registry import Model
    from ..config import Config, NetworkConfig
    from ..run import Run


@dataclass(frozen=True)
class Scene:
    """What training may see, and what it is tested on.

    Attributes:
        data: the whole graph.
        observed: what training sees; the whole graph in the transductive setting.
        observed_nodes: global id of each observed node.
        heldout: global ids of the nodes that arrive after training; None in the transductive setting.
    """

    data: NodeData
    observed: NodeData
    observed_nodes: Tensor
    heldout: Tensor | None

    @classmethod
    def of(cls, config: Config, data: NodeData) -> Scene:
        """The scene of a run's setting."""
        if config.data.setting == "transductive":
            return cls(data, data, torch.arange(data.num_nodes, device=data.x.device), None)
        view = data.inductive(config.split_seed, config.heldout_rate)
        return cls(data, view.observed, view.observed_nodes, view.heldout)


@dataclass(frozen=True)
class Inputs:
    """Rows of the student: those it is trained on, and those of held-out nodes."""

    seen_ND: Tensor
    heldout: Tensor | None

    @classmethod
    def of(cls, scene: Scene, rows: Tensor) -> Inputs:
        """Of the rows of all nodes, those that the setting shows when."""
        if scene.heldout is None:
            return cls(rows, None)
        return cls(rows[scene.observed_nodes], rows[scene.heldout])


class StudentTask(Task):
    """Train a student on labels and on a teacher's soft targets (RbM, eq. 13).

    Args:
        model: forward(x [B, D]) -> Output.
        scene: data of the setting.
        inputs: the student's rows.
        targets: what the teacher says.
        config: settings with nothing left open, see `protocol.resolve`.
    """

    def __init__(self, model: Model, scene: Scene, inputs: Inputs, targets: StudentTargets, config: Config) -> None:
        self.phase, self.metric, self.model = model.name, scene.data.metric, model
        self.scene, self.inputs, self.targets, self.config = scene, inputs, targets, config
        self.optimizer = self._adam()
        self.epoch = 0
        self.pretrain_epochs = config.distill.pretrain_epochs if isinstance(model, RbM) else 0
        labelled = torch.zeros(scene.observed.num_nodes, dtype=torch.bool, device=inputs.seen_ND.device)
        labelled[scene.observed.train_idx] = True
        self.labelled_N = labelled

    def begin_epoch(self, epoch: int) -> None:
        """Start routing when pre-training is over."""
        if isinstance(self.model, RbM) and epoch == self.pretrain_epochs:
            self.model.set_pretraining(False)
            kmeans_start(self.model, self.inputs.seen_ND, self.config.seed, self.config.distill.kmeans_restarts)
            self._optimize_clones()

    def batches(self, epoch: int) -> list[Tensor | None]:
        """All rows at once, or shuffled batches of `train.batch_size`; with them the epoch's targets are drawn."""
        self.epoch = epoch
        if isinstance(self.model, RbM):
            self.model.set_pretraining(epoch < self.pretrain_epochs)
            self.model.set_epoch(max(0, epoch - self.pretrain_epochs))
        self.drawn = self.targets.draw(self.config.seed, epoch)
        self.weights = self._weights()
        rows, size = self.inputs.seen_ND.shape[0], self.config.train.batch_size
        whole = size == 0 or size >= rows
        self.replays = whole and bool(self.config.distill.batch_weights) and epoch >= self.pretrain_epochs
        if isinstance(self.model, RbM):
            self.model.set_following(not self.replays)
        if whole:
            return [None]
        generator = torch.Generator().manual_seed((self.config.seed * 1_000_003 + epoch) & 0x7FFFFFFFFFFFFFFF)
        order = torch.randperm(rows, generator=generator).to(self.inputs.seen_ND.device)
        return list(torch.split(order, size))

    def losses(self, batch: Tensor | None) -> dict[str, Tensor]:
        """nu CE + (1 - nu) (KD + KRD) + the memories' losses; over a batch each term estimates its full value."""
        seen, pairs, labelled_B, y_B = self.inputs.seen_ND, self.drawn.pairs, self.labelled_N, self.scene.observed.y
        if batch is not None:
            seen, pairs, labelled_B, y_B = seen[batch], pairs.rows(batch), labelled_B[batch], y_B[batch]
        if self.replays and isinstance(self.model, RbM):
            self._follow_batches(self.model)
        logits, aux = self.model(seen)
        distill = self.config.distill
        share = self.labelled_N.shape[0] / (self.labelled_N.sum() * labelled_B.shape[0])
        label = functional.cross_entropy(logits[labelled_B], y_B[labelled_B], reduction="sum") * share
        soft = krd(logits, pairs, distill.tau, bool(distill.normalized_tau))
        of_labels, of_pairs, of_aux = self.weights
        loss = of_labels * label + of_pairs * soft + of_aux * aux
        return {"loss": loss, "label": label, "soft": soft, "aux": aux}

    def after_step(self) -> None:
        """The memories' own step (eq. 7)."""
        if isinstance(self.model, RbM):
            rate = self.config.distill.memory_lr
            self.model.spread_memories_(self.config.train.lr if rate is None else rate)

    def evaluate(self) -> dict[str, float]:
        """Scores of validation and test nodes; tells the sampler where student and teacher agree."""
        data = self.scene.observed
        logits = self.model(self.inputs.seen_ND).logits
        self.targets.observe(logits)
        scores = {"val": self._score(logits, data.y, data.val_idx)}
        if self.inputs.heldout is None or self.scene.heldout is None:
            return scores | {"test": self._score(logits, data.y, data.test_idx)}
        arrived = self.model(self.inputs.heldout).logits
        scores["test"] = metrics.evaluate(self.metric, arrived, self.scene.data.y[self.scene.heldout])
        if len(data.test_idx):
            scores["test_observed"] = self._score(logits, data.y, data.test_idx)
        return scores

    def selectable(self) -> bool:
        """Only a routed student can be served, so only its weights are chosen."""
        return self.epoch >= self.pretrain_epochs

    def expert_load(self) -> list[float] | None:
        """Of a routed RbM: shares of its experts at the last forward."""
        if not isinstance(self.model, RbM) or not self.selectable():
            return None
        shares = self.model.expert_load()
        return None if shares is None else shares.tolist()

    def state(self) -> dict[str, Any]:
        """The sampling power."""
        return {} if self.targets.sampler is None else dict(self.targets.sampler.state())

    def load_state(self, state: dict[str, Any]) -> None:
        """Put the sampling power back."""
        if self.targets.sampler is not None:
            self.targets.sampler.load_state(state)

    def _adam(self) -> torch.optim.Adam:
        train = self.config.train
        return torch.optim.Adam(self.model.parameters(), lr=train.lr, weight_decay=train.weight_decay, fused=True)

    def _optimize_clones(self) -> None:
        """A new optimizer, or the old one without what it gathered on experts that had no rows yet."""
        if self.config.distill.reset_optimizer:
            self.optimizer = self._adam()
            return
        assert isinstance(self.model, RbM)
        for layer in self.model.rbm_layers():
            for stacked in (layer.experts.weight, layer.experts.bias):
                for name, value in self.optimizer.state[stacked].items():
                    if name != "step":
                        value[1:] = 0.0

    def _follow_batches(self, model: RbM) -> None:
        """The memories follow the batches of `batch_weights` rows that the program has, before they route the step."""
        size = self.config.distill.batch_weights or 0
        for rows, copies in self.drawn.batches(self.scene.observed.train_idx, size):
            model.follow_(self.inputs.seen_ND[rows], copies)

    def _weights(self) -> tuple[float, float, float]:
        nu, size = self.config.distill.ce_weight, self.config.distill.batch_weights
        if not size:
            return nu, 1.0 - nu, 1.0
        of_labels = math.ceil(len(self.scene.observed.train_idx) / size)
        of_pairs = math.ceil(self.drawn.num_pairs / size)
        return nu * of_labels, (1.0 - nu) * of_pairs, float(of_labels + of_pairs)

    def _score(self, logits: Tensor, y: Tensor, nodes: Tensor) -> float:
        return metrics.evaluate(self.metric, logits[nodes], y[nodes])


Fitted = tuple["Model", FitResult]


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
    candidates: list[Fitted]
    teacher: Fitted
    student: Fitted
    rows: Tensor

    def outcome(self) -> Outcome:
        """For the report."""
        others = [Trained.of(*fitted) for fitted in self.candidates if fitted is not self.teacher]
        data = self.scene.data
        return Outcome(
            Trained.of(*self.student), Trained.of(*self.teacher), others, split=data.split, sha256=data.sha256
        )


def train(config: Config, run: Run, device: torch.device) -> Outcome:
    """Teacher, positions, student."""
    return distill(config, run, device).outcome()


def distill(config: Config, run: Run, device: torch.device) -> Distilled:
    """Teacher, positions, student. With `model` set too, that network is trained as well and the better one teaches."""
    data = load_data(config)
    if not isinstance(data, NodeData) or data.metric != "accuracy":
        raise ConfigError(f"data '{config.data.name}': a student is distilled on node data with one class per node")
    run.line("graph", f"{data.name}: {data.summary()}")
    config = resolve(config, data.split)
    scene = Scene.of(config, data.to(device))
    candidates = [train_teacher(config, run, scene, *named) for named in _teachers(config)]
    teacher = max(candidates, key=lambda one: one[1].val_best)
    positions = find_positions(config, run, scene)
    rows = student_inputs(scene.data.x, positions, config.distill.position_scale, scene.observed_nodes)
    student = train_student(config, run, scene, teacher[0], rows)
    if not run.dry_run:
        keep_inputs(run, scene, rows)
    return Distilled(scene, candidates, teacher, student, rows)


def _teachers(config: Config) -> list[tuple[str, str, NetworkConfig]]:
    """Phase, model name and network of each network that may teach."""
    model, teacher = config.model.name, config.teacher.model
    if model is not None and teacher is not None:
        return [
            (model, model, config.model),
            (f"{teacher}-teacher" if teacher == model else teacher, teacher, config.teacher),
        ]
    if teacher is not None:
        return [("teacher", teacher, config.teacher)]
    raise ConfigError("student.model is set, but no teacher\n  mend: --teacher.model sage")


def train_teacher(
    config: Config, run: Run, scene: Scene, phase: str, name: str, network: NetworkConfig
) -> tuple[Model, FitResult]:
    """Fit a GNN in the setting of the run; held-out nodes join its graph for the test alone."""
    settings = config.teacher_train()
    task = node_task(phase, name, network, scene.data, config, settings, run)
    result = fit(task, settings, run)
    return task.model, result


def find_positions(config: Config, run: Run, scene: Scene) -> Tensor | None:
    """DeepWalk positions of all nodes, walked on the observed graph; kept in the run directory."""
    settings = config.distill
    if not settings.positions:
        return None
    path, current = run.checkpoint_path("positions"), fingerprint(run.config)
    if path.exists() and not run.dry_run:
        tensors, scalars = checkpoint.load(path)
        checkpoint.check_same(path, scalars["settings"], current)
        observed = tensors["positions"]
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
            checkpoint.save(path, {"positions": observed}, {"phase": "positions", "settings": current})
    observed = observed.to(scene.data.x.device)
    own = settings.position_of == "own"
    if scene.heldout is None and own:
        return observed
    return extend_positions(observed, scene.data.graph, scene.observed_nodes, own)


def keep_inputs(run: Run, scene: Scene, rows: Tensor) -> None:
    """Leave beside the checkpoints what a packed student needs and no weight tells: positions and class names."""
    data = scene.data
    tensors = {"positions": rows[:, data.num_features :]}
    scalars = {"phase": "inputs", "settings": fingerprint(run.config), "class_names": list(data.class_names)}
    checkpoint.save(run.checkpoint_path("inputs"), tensors, scalars)


def find_targets(config: Config, scene: Scene, teacher: Model) -> StudentTargets:
    """The teacher's soft targets on what training sees, and the sampler of reliable neighbours."""
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


def train_student(config: Config, run: Run, scene: Scene, teacher: Model, rows: Tensor) -> Fitted:
    """Fit the student; an RbM's pre-training epochs come before those of `train`."""
    assert config.student.model is not None
    inputs = Inputs.of(scene, rows)
    targets = find_targets(config, scene, teacher)
    run.begin(config.student.model)
    options = config.student.build_args()
    if config.student.model == "rbm":
        names = ("ema_rate", "commitment", "self_similarity", "load_balance")
        options |= {name: getattr(config.distill, name) for name in names}
    student = models.build(
        config.student.model, in_dim=inputs.seen_ND.shape[1], out_dim=scene.data.num_classes, **options
    ).to(inputs.seen_ND.device)
    task = StudentTask(student, scene, inputs, targets, config)
    settings = dataclasses.replace(config.train, epochs=config.train.epochs + task.pretrain_epochs)
    return student, fit(task, settings, run)
