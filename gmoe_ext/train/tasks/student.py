"""Train a student: any model that reads rows alone, one with routers, and RbM, whose memories learn by themselves.

N nodes that training sees, D student inputs, B rows of a batch.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...data.batching import without_waiting
from ...distill import StudentTargets, kmeans_start
from ...feature_rows import Features
from ...models import ExpertStudent, MoE, RbM
from ...models.registry import Model
from ...nn.losses import krd
from ..config import Config
from ..fit_state import Task, epoch_generator
from .node import adam, node_scores, prepare_for
from .scene import Scene

_UNLABELLED = -100  # class of a node whose label training does not see


class StudentTask(Task):
    """Train a student on labels and on a teacher's soft targets (RbM, eq. 13).

    Args:
        model: forward(x [B, D]) -> Output.
        scene: data of the setting.
        rows: the student's input of every node.
        targets: the teacher's soft targets.
        config: settings, filled in by `distill.resolve_protocol`.

    Attributes:
        routing: pre-training is over.
    """

    routing = True

    def __init__(self, model: Model, scene: Scene, rows: Features, targets: StudentTargets, config: Config) -> None:
        prepare_for(model, rows)
        self.phase, self.metric, self.model = model.name, scene.data.metric, model
        self.scene, self.targets, self.config = scene, targets, config
        self.seen_ND, self.heldout = scene.divide(rows)
        self.learners = model.learners()
        self.optimizer = adam(model, config.train)
        y, labelled = scene.observed.y, scene.observed.train_idx
        # A mask instead of a list of rows: how many rows of a batch have a label is known on the device alone.
        self.label_N = torch.full_like(y, _UNLABELLED).index_copy(0, labelled, y[labelled])
        self.num_labelled = torch.tensor(len(labelled), device=y.device)

    @property
    def pretrain_epochs(self) -> int:
        """Epochs before those of `train`."""
        return 0

    def enter_epoch(self, epoch: int) -> None:
        """Draw the epoch's targets."""
        self.drawn = self.targets.draw(epoch_generator(self.config.seed, epoch))
        self.weights = self._weights()

    def batches(self, epoch: int) -> list[Tensor | None]:
        """All rows at once, or shuffled batches of `train.batch_size`."""
        if self._full_batch():
            return [None]
        order = torch.randperm(len(self.seen_ND), generator=epoch_generator(self.config.seed, epoch))
        return list(torch.split(without_waiting(order, self.seen_ND.device), self.config.train.batch_size))

    def losses(self, batch: Tensor | None) -> dict[str, Tensor]:
        """nu CE + (1 - nu) (KD + KRD) + the model's own losses; over a batch each term estimates its full value.

        Summed over the models that learn by themselves, so that each gets the gradient it would get alone.
        """
        seen, pairs, label_B = self.seen_ND, self.drawn.pairs, self.label_N
        if batch is not None:
            seen, pairs, label_B = seen[batch], pairs.rows(batch), label_B[batch]
        distill = self.config.distill
        share = self.label_N.shape[0] / (self.num_labelled * label_B.shape[0])
        of_labels, of_pairs, of_aux = self.weights
        total: dict[str, Tensor] = {}
        for learner in self.learners:
            logits, aux = learner(seen)
            logits = logits.float()
            label = functional.cross_entropy(logits, label_B, ignore_index=_UNLABELLED, reduction="sum") * share
            soft = krd(logits, pairs, distill.tau, bool(distill.normalized_tau))
            loss = of_labels * label + of_pairs * soft + of_aux * aux
            for name, value in {"loss": loss, "label": label, "soft": soft, "aux": aux}.items():
                total[name] = total[name] + value if name in total else value
        return total

    def evaluate(self) -> dict[str, float]:
        """Scores of validation and test nodes."""
        logits, arrived = self.model(self.seen_ND).logits, None
        if self.heldout is not None and self.scene.heldout is not None:
            arrived = self.model(self.heldout).logits, self.scene.data.y[self.scene.heldout]
        self.evaluated_NC = logits
        return node_scores(self.scene.observed, logits, arrived)

    def after_evaluation(self) -> None:
        """Tell the sampler where student and teacher agree."""
        self.targets.observe(self.evaluated_NC)
        del self.evaluated_NC

    def state(self) -> dict[str, Any]:
        """The sampling power."""
        return {} if self.targets.sampler is None else dict(self.targets.sampler.state())

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the sampling power."""
        if self.targets.sampler is not None:
            self.targets.sampler.load_state(state)

    def _full_batch(self) -> bool:
        size = self.config.train.batch_size
        return size == 0 or size >= len(self.seen_ND)

    def _weights(self) -> tuple[float, float, float]:
        nu, size = self.config.distill.ce_weight, self.config.distill.batch_weights
        if not size:
            return nu, 1.0 - nu, 1.0
        of_labels = math.ceil(len(self.scene.observed.train_idx) / size)
        of_pairs = math.ceil(self.drawn.num_pairs / size)
        return nu * of_labels, (1.0 - nu) * of_pairs, float(of_labels + of_pairs)


class ExpertTask(StudentTask):
    """Train layers of experts: first without routers, then routed."""

    model: ExpertStudent[Any]
    routing = False

    @property
    def pretrain_epochs(self) -> int:
        """Epochs with one expert."""
        return self.config.distill.pretrain_epochs

    @abstractmethod
    def start_routing(self) -> None:
        """Turn a pre-trained model into one that routes."""

    def enter_epoch(self, epoch: int) -> None:
        """Start routing, once, when pre-training is over; then draw the epoch's targets."""
        self.model.set_pretraining(epoch < self.pretrain_epochs)
        if epoch >= self.pretrain_epochs and not self.routing:
            self.routing = True
            self.start_routing()
            self._optimize_clones()
        super().enter_epoch(epoch)

    def selectable(self) -> bool:
        """Only a routed student can be served, so only its weights are chosen."""
        return self.routing

    def expert_load(self) -> list[float] | None:
        """Shares of its experts at the last forward, once it routes."""
        shares = self.model.expert_load() if self.routing else None
        return None if shares is None else shares.tolist()

    def state(self) -> dict[str, Any]:
        """The sampling power, and whether routing has started."""
        return super().state() | {"routing": self.routing}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        super().load_state(state)
        self.routing = state["routing"]

    def _optimize_clones(self) -> None:
        """A new optimizer, or the old one without what it gathered on experts that had no rows yet."""
        if self.config.distill.reset_optimizer:
            self.optimizer = adam(self.model, self.config.train)
            return
        for layer in self.model.expert_layers():
            for stacked in (layer.experts.weight, layer.experts.bias) if layer.clones else ():
                for name, value in self.optimizer.state[stacked].items():
                    if name != "step":
                        value[1:] = 0.0


class MoETask(ExpertTask):
    """Train a vanilla mixture of experts; its routers learn with everything else."""

    model: MoE

    def start_routing(self) -> None:
        """Clone experts or leave them, as the model's variant says."""
        self.model.start_routing()


class RbMTask(ExpertTask):
    """Train an RbM: one expert is cloned, and memories choose among the clones."""

    model: RbM

    def start_routing(self) -> None:
        """Clone experts and place the memories."""
        kmeans_start(self.model, self.seen_ND, self.config.seed, self.config.distill.kmeans_restarts)

    def enter_epoch(self, epoch: int) -> None:
        """Set the annealing epoch; a full-batch epoch may replay the small batches of the released code."""
        super().enter_epoch(epoch)
        self.model.set_epoch(max(0, epoch - self.pretrain_epochs))
        size = self.config.distill.batch_weights
        replays = self.routing and bool(size) and self._full_batch()
        self.replayed = list(self.drawn.batches(self.scene.observed.train_idx, size or 0)) if replays else []
        self.model.set_following(not replays)

    def losses(self, batch: Tensor | None) -> dict[str, Tensor]:
        """As for every student, after the memories have followed the replayed rows."""
        for rows, copies in self.replayed:
            self.model.follow_(self.seen_ND[rows], copies)
        return super().losses(batch)

    def after_step(self) -> None:
        """Move the memories."""
        rate = self.config.distill.memory_lr
        self.model.after_step(self.config.train.lr if rate is None else rate)


def build_task(model: Model, scene: Scene, rows: Features, targets: StudentTargets, config: Config) -> StudentTask:
    """Build the task that trains this kind of student."""
    kind = RbMTask if isinstance(model, RbM) else MoETask if isinstance(model, MoE) else StudentTask
    return kind(model, scene, rows, targets, config)
