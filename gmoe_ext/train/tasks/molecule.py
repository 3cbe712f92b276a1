"""Molecule property prediction: batches of graphs, BCE over known labels, squared error or cross entropy."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ... import models
from ...data import MoleculeBatch, MoleculeData, metrics
from ...errors import ConfigError
from ...models.gnn import ExpertGNN
from ...models.registry import Model
from ..config import Config, TrainConfig
from ..fit_state import Task, epoch_generator
from ..loop import fit
from ..report import Outcome, Trained
from ..run import Run
from .node import expert_load, label_loss

EVAL_BATCH = 256


class MoleculeTask(Task):
    """Train a GNN on a set of molecules.

    Args:
        phase: name of the fit.
        model: forward(batch) -> Output.
        data: the molecules, on the model's device.
        train: batch size, learning rate and weight decay of Adam.
        seed: seed of the order of the molecules in every epoch.
        two_hop: the model has hop-2 experts.
    """

    def __init__(
        self,
        phase: str,
        model: Model,
        data: MoleculeData,
        train: TrainConfig,
        seed: int,
        two_hop: bool,
    ) -> None:
        self.phase, self.metric = phase, data.metric
        self.model: Model = model
        self.data = data
        self.optimizer = torch.optim.Adam(model.parameters(), lr=train.lr, weight_decay=train.weight_decay, fused=True)
        self._batch_size = train.batch_size or len(data.train_idx)
        self._seed, self._two_hop = seed, two_hop
        self._parts: dict[str, list[MoleculeBatch]] = {}
        if self._batch_size < 2:
            raise ConfigError(f"train.batch_size: expected at least 2 molecules (or 0 for all), got {self._batch_size}")

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """Molecule ids, shuffled in every epoch; a last batch of one molecule is left out, as OGB does."""
        order = torch.randperm(len(self.data.train_idx), generator=epoch_generator(self._seed, epoch))
        for chosen in torch.split(order, self._batch_size):
            if len(chosen) > 1:
                yield self.data.train_idx[chosen]

    def load(self, batch: Tensor) -> MoleculeBatch:
        """Cut the batch out of the data where it lies: only ids and offsets travel to a GPU."""
        return self.data.batch(batch, two_hop=self._two_hop)

    def losses(self, batch: MoleculeBatch) -> dict[str, Tensor]:
        """Loss of the known labels and of the routing."""
        logits, aux = self.model(batch)
        task = label_loss(self.metric, logits, batch.y)
        return {"loss": task + aux, "task": task, "aux": aux}

    def evaluate(self) -> dict[str, float]:
        """Scores of validation and test molecules."""
        return {"val": self._score("val", self.data.val_idx), "test": self._score("test", self.data.test_idx)}

    def expert_load(self) -> list[float] | None:
        """Shares of the experts at the last forward, for a model that routes."""
        return expert_load(self.model)

    def _score(self, part: str, ids: Tensor) -> float:
        if part not in self._parts:  # the batches are the same at every evaluation, so they are cut once
            self._parts[part] = [self.data.batch(some, two_hop=self._two_hop) for some in torch.split(ids, EVAL_BATCH)]
        batches = self._parts[part]
        logits = torch.cat([self.model(batch).logits for batch in batches])
        return metrics.evaluate(self.metric, logits, torch.cat([batch.y for batch in batches]))


def train(config: Config, run: Run, device: torch.device, data: MoleculeData) -> Outcome:
    """Train `model` on a molecule data set."""
    name, network = config.model.name, config.model
    assert name is not None
    if config.data.setting != "transductive":
        raise ConfigError("data.setting: molecules have no inductive setting; training never sees their test graphs")
    run.line("molecules", f"{data.name}: {data.summary()}")
    run.begin(name)
    model = models.build(name, input="molecule", out_dim=data.num_outputs, **network.build_args()).to(device)
    two_hop = isinstance(model, ExpertGNN) and model.needs_two_hop
    task = MoleculeTask(name, model, data.to(device), config.train, config.seed, two_hop)
    result = fit(task, config.train, run)
    return Outcome(Trained(model, result), data)
