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
from ..fit_state import epoch_generator
from ..loop import fit
from ..report import Outcome, Trained
from ..run import Run
from .node import GNNTask
from .scene import check_scored

EVAL_BATCH = 256


class MoleculeTask(GNNTask):
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
        self, phase: str, model: Model, data: MoleculeData, train: TrainConfig, seed: int, two_hop: bool
    ) -> None:
        super().__init__(phase, model, data.metric, train)
        self.data = data
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
        return self.label_losses(logits, batch.y, aux)

    def evaluate(self) -> dict[str, float]:
        """Scores of validation and test molecules."""
        return {"val": self._score("val", self.data.val_idx), "test": self._score("test", self.data.test_idx)}

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
    check_scored(data)
    run.progress.line("molecules", f"{data.name}: {data.summary()}")
    run.begin(name)
    model = models.build(name, input="molecule", out_dim=data.num_outputs, **network.build_args()).to(device)
    two_hop = isinstance(model, ExpertGNN) and model.needs_two_hop
    task = MoleculeTask(name, model, data.to(device), config.train, config.seed, two_hop)
    run.ready(data)
    result = fit(task, config.train, run)
    return Outcome(Trained(model, result), data)
