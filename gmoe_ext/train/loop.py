"""The training loop.

    task = SomeTask(...)                    # after run.begin(phase): seeds before anything is initialised
    result = fit(task, config.train, run)   # task.model then holds the weights of the best validation epoch

A run continues bit for bit from a checkpoint at any step (on the CPU), provided its task keeps the rules of
`fit_state.Task`.

On a GPU steps are queued without waiting: the host learns an epoch's losses, and of bad indices that an operator found,
when the epoch is over.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from time import perf_counter
from typing import Any

import torch

from .._native import raise_index_faults
from ..data import metrics
from ..errors import GmoeError, NotFiniteError
from .config import TrainConfig
from .device import autocast
from .fit_state import FitResult, FitState, Task
from .run import Run

_LOWER = "fix: lower the learning rate, or check the features"


def fit(task: Task, train: TrainConfig, run: Run) -> FitResult:
    """Train a task: epochs of steps, validation, best weights, patience, checkpoints.

    Selection is by validation: `task.model` ends with the weights of the best validation epoch.

    Args:
        task: see `fit_state.Task`.
        train: epochs, patience, evaluation and checkpoint intervals.
        run: directory, metrics, progress, signals; continues its checkpoint of this phase if there is one.

    Raises:
        Interrupted: a signal came; the checkpoint has been written.
        GmoeError: the loss is no longer finite.
    """
    if run.dry_run:
        return _dry_fit(task, train, run)
    state = run.restore(task) or FitState(task.phase, task.metric)
    with run.fitting(task, train, state):
        while state.epochs < train.epochs and not _out_of_patience(state, train):
            losses = _train_epoch(task, train, state, run)
            _check_finite(losses.get("loss", math.nan), f"{state.batches} batches", task, state, run)
            state.epochs, state.batches, state.sums = state.epochs + 1, 0, {}
            scores = {}
            if state.epochs % train.eval_every == 0 or state.epochs == train.epochs:
                scores = _evaluate(task, state, run)
                _select(task, train, state, scores)
            run.epoch_done(task, train, state, losses, scores)
        run.save(task, state)
    task.model.load_state_dict(state.best)
    return state.result()


def _train_epoch(task: Task, train: TrainConfig, state: FitState, run: Run) -> dict[str, float]:
    """Train one epoch, from the batch where a checkpoint stopped; return the means of the losses."""
    task.model.train()
    device = task.device
    start = perf_counter()
    task.enter_epoch(state.epochs)
    per_epoch = train.step_per == "epoch"
    for batch in _loaded(task, islice(task.batches(state.epochs), state.batches, None), device):
        losses = _backward(task, train, device, batch)
        if device.type == "cpu":
            _check_finite(float(losses["loss"].detach()), f"batch {state.batches + 1}", task, state, run)
        for name, value in losses.items():
            state.sums[name] = state.sums.get(name, 0.0) + value.detach().double()
        state.batches += 1
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
    """The batches, ready for `losses`; on a GPU the next one is loaded while a step is queued."""
    if device.type == "cpu":
        yield from map(task.load, batches)
        return
    ahead: list[Any] = []
    for batch in batches:
        ahead.append(task.load(batch))
        if len(ahead) == 2:
            yield ahead.pop(0)
    yield from ahead


def _backward(task: Task, train: TrainConfig, device: torch.device, batch: Any) -> dict[str, torch.Tensor]:
    """Add one batch to the gradients; return its losses."""
    with autocast(device, train.precision):
        losses = task.losses(batch)
    losses["loss"].backward()  # type: ignore[no-untyped-call]
    return losses


def _step(task: Task, state: FitState) -> None:
    task.optimizer.step()
    task.optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        task.after_step()
    state.steps += 1


def _means(state: FitState) -> dict[str, float]:
    """The mean losses of an epoch. The host waits for the device here, once per epoch."""
    if not state.sums:
        return {}
    sums = torch.stack(list(state.sums.values())) / max(1, state.batches)
    return dict(zip(state.sums, sums.tolist(), strict=True))


def _evaluate(task: Task, state: FitState, run: Run) -> dict[str, float]:
    task.model.eval()
    try:
        with torch.no_grad():
            scores = task.evaluate()
            task.after_evaluation()
    except NotFiniteError as error:  # the step after the last finite loss
        raise GmoeError(
            f"{task.phase}: predictions are NaN or infinite after epoch {state.epochs}, step {state.steps}; "
            f"last good checkpoint: {run.last_good}\n  {_LOWER}"
        ) from error
    return scores


def _select(task: Task, train: TrainConfig, state: FitState, scores: dict[str, float]) -> None:
    """Keep the weights if their validation score is the best so far; test scores never decide."""
    if not task.selectable():
        return
    if metrics.better(task.metric, scores["test"], state.test_best):
        state.test_best = scores["test"]
    if state.best_epoch and not metrics.better(task.metric, scores["val"], state.val_best, train.keep_ties):
        return
    state.best_epoch, state.val_best, state.test_at_best_val = state.epochs, scores["val"], scores["test"]
    for name, value in task.model.state_dict().items():
        if name in state.best:
            state.best[name].copy_(value)
        else:
            state.best[name] = value.detach().clone()


def _out_of_patience(state: FitState, train: TrainConfig) -> bool:
    return train.patience > 0 and state.best_epoch > 0 and state.epochs - state.best_epoch >= train.patience


def _check_finite(loss: float, where: str, task: Task, state: FitState, run: Run) -> None:
    """Stop where the loss is no number. On a GPU, where a step does not wait for it, an epoch is checked at its end."""
    if math.isfinite(loss):
        return
    got = "undefined, for lack of a batch to train on," if where == "0 batches" else loss
    raise GmoeError(
        f"{task.phase}: the loss is {got} in epoch {state.epochs + 1}, {where}, step {state.steps + 1}; "
        f"last good checkpoint: {run.last_good}\n  {_LOWER}"
    )


def _dry_fit(task: Task, train: TrainConfig, run: Run) -> FitResult:
    """Run one step and one evaluation, and write nothing."""
    state = FitState(task.phase, task.metric, epochs=1, batches=1)
    task.model.train()
    task.enter_epoch(0)
    losses = _backward(task, train, task.device, task.load(next(iter(task.batches(0)))))
    _step(task, state)
    scores = _evaluate(task, state, run)
    state.val_best, state.test_at_best_val, state.test_best = scores["val"], scores["test"], scores["test"]
    run.progress.line(task.phase, f"one step: loss {losses['loss'].item():.3f}  val {scores['val']:.3f}")
    return state.result()
