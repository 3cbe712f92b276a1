"""The training loop, and what a task must offer to be trained by it.

    task = SomeTask(...)                    # after run.begin(phase): seeds before anything is initialised
    result = fit(task, config.train, run)   # task.model then holds the weights of the best validation epoch

Everything is continued bit for bit from a checkpoint at any step (on the CPU), provided a task keeps the rules below.

On a GPU a step is queued and nobody waits for it: the host learns of an epoch's losses, and of bad indices that an
operator met, when the epoch is over.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._native import raise_index_faults
from ..errors import ConfigError, GmoeError
from .device import autocast

if TYPE_CHECKING:
    from .config import TrainConfig
    from .run import Run


class Task(ABC):
    """What `fit` trains: a model, its data, its losses and its score.

    Attributes to set in `__init__`:
        phase: name of this fit within the run ("gcn", "teacher", "rbm"); names its checkpoint and its metrics.
        metric: "accuracy", "rocauc" (higher is better) or "rmse" (lower is better).
        model: what is trained, saved and put back.
        optimizer: holds the same parameters, in the same order, whenever a run of this task is built. A task may
            replace it in `begin_epoch`.

    Rules that make a resumed run equal to an uninterrupted one:
        - build the task after `run.begin(phase)`; whatever else is random before `fit` has a seed of its own;
        - `begin_epoch` may draw from the global random states and change the task; what it leaves behind and a later
          step needs is in `state()`. When a run continues inside an epoch it is NOT called again for that epoch;
        - `batches(epoch)` depends on the seed, the epoch and `state()` alone, draws from a generator of its own, and
          may be called again for the same epoch: a resumed run skips the batches it has had. Yield indices rather than
          ready-made batches, so that skipping costs nothing;
        - `load` draws from no random state;
        - `losses` may draw from the global random states (dropout, noise).

    Rules that keep a GPU busy: `load`, `losses` and `after_step` never wait for it (no .item(), no shape that depends
    on what a tensor holds); what has to wait belongs to `begin_epoch`, `batches` or `evaluate`.
    """

    phase: str
    metric: str
    model: nn.Module
    optimizer: torch.optim.Optimizer

    def begin_epoch(self, epoch: int) -> None:
        """Called before the first batch of an epoch, counted from 0; the place for schedules and new targets."""
        return

    @abstractmethod
    def batches(self, epoch: int) -> Iterable[Any]:
        """The batches of an epoch, in order. Batches that cannot be trained on are left out here."""

    def load(self, batch: Any) -> Any:
        """What `losses` gets for one of `batches`. On a GPU it is called one batch ahead of it."""
        return batch

    @abstractmethod
    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Forward one loaded batch. "loss" is back-propagated; further scalars are only recorded, as epoch means."""

    def after_step(self) -> None:
        """Called after each optimizer step, without gradients; for updates that are not the optimizer's."""
        return

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Scores of the current weights, in evaluation mode and without gradients: at least "val" and "test"."""

    def selectable(self) -> bool:
        """Whether the weights just evaluated may be chosen; not so while a task is only warming up."""
        return True

    def expert_load(self) -> list[float] | None:
        """Share of the routed rows that each expert got last, to be shown and recorded; None without experts."""
        return None

    def state(self) -> dict[str, Any]:
        """What `begin_epoch` and `after_step` keep beyond model and optimizer: tensors and JSON values, by name."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Put `state()` back."""
        return


@dataclass
class FitState:
    """Where a fit stands. All of it goes into the checkpoint."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best_epoch: int = 0  # counted from 1; 0: none yet
    val_best: float = math.nan
    test_at_best_val: float = math.nan
    test_best: float = math.nan
    wall_s: float = 0.0
    metrics_bytes: int = 0  # length of metrics.jsonl when the checkpoint was written
    sums: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class FitResult:
    """Outcome of one fit; scores are in the task's metric."""

    phase: str
    metric: str
    val_best: float
    test_at_best_val: float
    test_best: float
    best_epoch: int
    epochs: int
    steps: int
    wall_s: float


def fit(task: Task, train: TrainConfig, run: Run) -> FitResult:
    """Train a task: epochs of steps, validation, best weights, patience, checkpoints.

    Selection is by validation: `task.model` ends with the weights of the best validation epoch.

    Args:
        task: see `Task`.
        train: epochs, patience, evaluation and checkpoint intervals.
        run: directory, metrics, progress, signals; continues its checkpoint of this phase if there is one.

    Raises:
        Interrupted: a signal came; the checkpoint has been written.
        GmoeError: the loss is no longer finite.
    """
    if train.epochs < 1 or train.eval_every < 1:
        raise ConfigError(f"train: epochs and eval_every must be at least 1, got {train.epochs} and {train.eval_every}")
    if run.dry_run:
        return _dry(task, run)
    state = run.restore(task) or FitState()
    with run.fitting(task, train, state):
        while state.epoch < train.epochs and not _out_of_patience(state, train):
            losses = _train_epoch(task, train, state, run)
            _check_finite(losses, task, state)
            state.epoch, state.batch, state.sums = state.epoch + 1, 0, {}
            scores = {}
            if state.epoch % train.eval_every == 0 or state.epoch == train.epochs:
                scores = _evaluate(task)
                _select(task, train, state, scores)
            run.epoch_done(task, train, state, losses, scores)
        run.save(task, state)
    task.model.load_state_dict(state.best)
    return _result(task, state)


def _train_epoch(task: Task, train: TrainConfig, state: FitState, run: Run) -> dict[str, float]:
    """One epoch of steps, from the batch where a checkpoint stopped; returns the means of the losses."""
    task.model.train()
    device = _device(task)
    if state.batch == 0:
        task.begin_epoch(state.epoch)
    start = perf_counter()
    per_epoch = train.step_per == "epoch"
    for batch in _loaded(task, islice(task.batches(state.epoch), state.batch, None), device):
        with autocast(device, train.precision):
            losses = task.losses(batch)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        for name, value in losses.items():
            state.sums[name] = state.sums.get(name, 0.0) + value.detach().double()
        state.batch += 1
        if per_epoch:
            continue
        _step(task, state)
        state.wall_s += perf_counter() - start
        run.step_done(task, train, state)
        start = perf_counter()
    if per_epoch:
        _step(task, state)
    means = _means(state)
    raise_index_faults(device)
    state.wall_s += perf_counter() - start
    return means


def _loaded(task: Task, batches: Iterable[Any], device: torch.device) -> Iterator[Any]:
    """The batches, ready for `losses`; on a GPU the next one is on its way while a step is queued."""
    if device.type == "cpu":
        yield from map(task.load, batches)
        return
    ahead: list[Any] = []
    for batch in batches:
        ahead.append(task.load(batch))
        if len(ahead) == 2:
            yield ahead.pop(0)
    yield from ahead


def _means(state: FitState) -> dict[str, float]:
    """The losses of an epoch. Here the host waits for the device, once."""
    if not state.sums:
        return {}
    sums = torch.stack(list(state.sums.values())) / max(1, state.batch)
    return dict(zip(state.sums, sums.tolist(), strict=True))


def _device(task: Task) -> torch.device:
    return next(task.model.parameters()).device


def _step(task: Task, state: FitState) -> None:
    task.optimizer.step()
    task.optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        task.after_step()
    state.step += 1


def _evaluate(task: Task) -> dict[str, float]:
    task.model.eval()
    with torch.no_grad():
        return task.evaluate()


def better(metric: str, score: float, than: float, ties: bool = False) -> bool:
    """Whether a score beats another one; any number beats NaN."""
    if math.isnan(than):
        return not math.isnan(score)
    ahead = score < than if metric == "rmse" else score > than
    return ahead or (ties and score == than)


def _select(task: Task, train: TrainConfig, state: FitState, scores: dict[str, float]) -> None:
    """Keep the weights when validation says so; test scores never decide."""
    if not task.selectable():
        return
    if better(task.metric, scores["test"], state.test_best):
        state.test_best = scores["test"]
    if state.best_epoch and not better(task.metric, scores["val"], state.val_best, train.keep_ties):
        return
    state.best_epoch, state.val_best, state.test_at_best_val = state.epoch, scores["val"], scores["test"]
    for name, value in task.model.state_dict().items():
        if name in state.best:
            state.best[name].copy_(value)
        else:
            state.best[name] = value.detach().clone()


def _out_of_patience(state: FitState, train: TrainConfig) -> bool:
    return train.patience > 0 and state.best_epoch > 0 and state.epoch - state.best_epoch >= train.patience


def _check_finite(losses: dict[str, float], task: Task, state: FitState) -> None:
    if not math.isfinite(losses.get("loss", math.nan)):
        got = losses.get("loss", "no batch at all")
        raise GmoeError(
            f"{task.phase}: loss is {got} in epoch {state.epoch + 1}\n"
            "  mend: lower the learning rate, or check the features"
        )


def _dry(task: Task, run: Run) -> FitResult:
    """One step and one evaluation, nothing written."""
    state = FitState(epoch=1, batch=1, step=1)
    task.model.train()
    task.begin_epoch(0)
    with autocast(_device(task), run.config.train.precision):
        losses = task.losses(task.load(next(iter(task.batches(0)))))
    losses["loss"].backward()  # type: ignore[no-untyped-call]
    _step(task, state)
    scores = _evaluate(task)
    state.val_best, state.test_at_best_val, state.test_best = scores["val"], scores["test"], scores["test"]
    run.line(task.phase, f"one step: loss {losses['loss'].item():.3f}  val {scores['val']:.3f}")
    return _result(task, state)


def _result(task: Task, state: FitState) -> FitResult:
    return FitResult(
        phase=task.phase,
        metric=task.metric,
        val_best=state.val_best,
        test_at_best_val=state.test_at_best_val,
        test_best=state.test_best,
        best_epoch=state.best_epoch,
        epochs=state.epoch,
        steps=state.step,
        wall_s=state.wall_s,
    )
