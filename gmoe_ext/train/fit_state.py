"""What a fit works on and continues from, bit for bit: the task, its position, random states and settings."""

from __future__ import annotations

import math
import random
import sys
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoint import Tensors
from ..errors import ConfigError


class Task(ABC):
    """What `loop.fit` trains: a model, its data, its losses and its score.

    Attributes to set in `__init__`:
        phase: name of this fit within the run ("gcn", "teacher", "rbm"); names its checkpoint and its metrics.
        metric: "accuracy", "rocauc" (higher is better) or "rmse" (lower is better).
        model: the network that is trained, saved and restored.
        optimizer: holds the same parameters, in the same order, whenever a run of this task is built. A task may
            replace it in `enter_epoch`.

    Rules that make a resumed run equal to an uninterrupted one:
        - build the task after `run.begin(phase)`; anything else that is random before `fit` has a seed of its own;
        - only `enter_epoch`, `after_step` and `after_evaluation` change the task, and `state()` holds what they change;
        - `enter_epoch` runs at the start of every epoch, and again when a run resumes inside it. It depends on the
          seed, the epoch and `state()` alone and draws from generators of its own; a change to make once (such as
          starting to route) is recorded in `state()`;
        - `batches` yields the same batches at every call within an epoch: a resumed run skips those it has trained on.
          Yield indices rather than ready-made batches, so that skipping costs nothing;
        - `losses` may draw from the global random states (dropout, noise); the others may not.

    Rules that keep a GPU busy: `load`, `losses` and `after_step` never wait for it (no .item(), no shape that depends
    on what a tensor holds); what has to wait belongs in `enter_epoch`, `batches` or `evaluate`.
    """

    phase: str
    metric: str
    model: nn.Module
    optimizer: torch.optim.Optimizer

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.model.parameters()).device

    def enter_epoch(self, epoch: int) -> None:
        """Prepare for an epoch, counted from 0: the place for schedules and new targets."""
        return

    @abstractmethod
    def batches(self, epoch: int) -> Iterable[Any]:
        """The batches of an epoch, in order. Leave out batches that cannot be trained on."""

    def load(self, batch: Any) -> Any:
        """Prepare one of `batches` for `losses`. On a GPU it is called one batch ahead of `losses`."""
        return batch

    @abstractmethod
    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Forward one loaded batch. "loss" is back-propagated; further scalars are only recorded, as epoch means."""

    def after_step(self) -> None:
        """Update what is not the optimizer's, after each of its steps, without gradients."""
        return

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Score the current weights, in evaluation mode and without gradients: at least "val" and "test"."""

    def after_evaluation(self) -> None:
        """Update what depends on the last `evaluate`, once after it, without gradients."""
        return

    def selectable(self) -> bool:
        """Whether the weights just evaluated may be chosen; False while a task is only warming up."""
        return True

    def expert_load(self) -> list[float] | None:
        """Share of the routed rows that each expert got last, to be shown and recorded; None without experts."""
        return None

    def state(self) -> dict[str, Any]:
        """What the task must remember beyond model and optimizer: tensors and JSON values, by name."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        return


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Return a CPU generator for the order of an epoch's batches; every seed and epoch has a stream of its own."""
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch) & 0x7FFFFFFFFFFFFFFF)


@dataclass
class FitResult:
    """Outcome of one fit; scores are in the task's metric, epochs are counted from 1, and 0 is none yet."""

    phase: str
    metric: str
    val_best: float = math.nan
    test_at_best_val: float = math.nan
    test_best: float = math.nan
    best_epoch: int = 0
    epochs: int = 0
    steps: int = 0
    wall_s: float = 0.0


@dataclass
class FitState(FitResult):
    """Where a fit stands. All of it goes into the checkpoint."""

    batches: int = 0  # of the current epoch
    metrics_bytes: int = 0  # length of metrics.jsonl when the checkpoint was written
    sums: Tensors = field(default_factory=dict)
    best: Tensors = field(default_factory=dict)

    @classmethod
    def of(cls, content: Mapping[str, Any], weights: Mapping[str, Tensor], device: torch.device) -> FitState:
        """Read where a fit stands from the content of a checkpoint, for a model that has ``weights`` now.

        Raises:
            KeyError, TypeError, ValueError: it is not what `Run.save` writes.
        """
        state, best, sums = cls(**content["fit"]), dict(content["best"]), dict(content["sums"])
        for one in fields(FitState):
            value, kinds = getattr(state, one.name), {"str": str, "int": int, "float": int | float}
            if one.type in kinds and (not isinstance(value, kinds[one.type]) or isinstance(value, bool)):
                raise TypeError(f"expected '{one.name}' of type {one.type}, got {value!r}")
            if one.type == "int" and not 0 <= value <= sys.maxsize:
                raise ValueError(f"expected '{one.name}' from 0 to {sys.maxsize}, got {value}")
        own = {name: _form(value) for name, value in weights.items()} if state.best_epoch else {}
        if {name: _form(value) for name, value in best.items()} != own:
            raise ValueError("its best weights are not those of this model")
        if not all(value.dim() == 0 and value.is_floating_point() for value in sums.values()):
            raise ValueError("its sums of losses are no numbers")
        state.best = {name: value.to(weights[name].device) for name, value in best.items()}
        state.sums = {name: value.to(device) for name, value in sums.items()}
        return state

    def result(self) -> FitResult:
        """Return the outcome alone, without weights."""
        return FitResult(**{f.name: getattr(self, f.name) for f in fields(FitResult)})


def seed_all(seed: int, phase: str = "") -> None:
    """Seed torch, NumPy and Python for one phase of a run. Nothing else in the package seeds them.

    Every phase has its own stream, derived from the run's seed and the phase's name, so a resumed run that skips
    finished phases draws the same numbers as one that trained them.
    """
    stream = np.random.SeedSequence([seed & 0xFFFFFFFFFFFFFFFF, zlib.crc32(phase.encode())])
    a, b, c = (int(word) for word in stream.generate_state(3, np.uint32))
    torch.manual_seed(a)
    np.random.seed(b)
    random.seed(c)


def rng_state(device: torch.device) -> dict[str, Any]:
    """Return the random states of torch (CPU, and the GPU that trains), NumPy and Python."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": {
            "keys": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            "rest": [str(kind), int(position), int(has_gauss), float(cached)],
        },
        "python": {"words": torch.tensor(words, dtype=torch.int64), "rest": [version, gauss]},
    }
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_rng_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Restore what `rng_state` returned; a GPU that takes over from the CPU keeps the phase's seed."""
    torch.set_rng_state(state["torch"])
    kind, *rest = state["numpy"]["rest"]
    np.random.set_state((kind, state["numpy"]["keys"].numpy().astype(np.uint32), *rest))
    version, gauss = state["python"]["rest"]
    random.setstate((version, tuple(state["python"]["words"].tolist()), gauss))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimizer's state with names for keys, as JSON has them."""
    state = optimizer.state_dict()
    return state | {"state": {str(parameter): entries for parameter, entries in state["state"].items()}}


def set_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restore what `optimizer_state` returned.

    Raises:
        ValueError: it is of another optimizer, or of other parameters.
    """
    held = {int(name): entries for name, entries in state["state"].items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    of_parameters = all(
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.shape in ((), parameters[parameter].shape)
        and (name != "step" or 0 <= float(value) < math.inf)
        for parameter, entries in held.items()
        for name, value in entries.items()
    )
    # The groups' options are those of the settings, which are the same (see `check_same`), and of this torch.
    own = optimizer.state_dict()["param_groups"]
    grouped = [group["params"] for group in state["param_groups"]] == [group["params"] for group in own]
    if not (of_parameters and grouped and len({frozenset(entries) for entries in held.values()}) <= 1):
        raise ValueError("its optimizer is another one, has other parameters, or counts no steps")
    laid_out = {
        parameter: {name: _as_laid_out(value, parameters[parameter]) for name, value in entries.items()}
        for parameter, entries in held.items()
    }
    optimizer.load_state_dict({"state": laid_out, "param_groups": own})


def _as_laid_out(value: Tensor, parameter: Tensor) -> Tensor:
    """Give a tensor the parameter's order in memory, which fused optimizers take for granted."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device, requires_grad=False).copy_(value)


def _form(value: Tensor) -> tuple[torch.dtype, torch.Size]:
    return value.dtype, value.shape


def check_same(path: Path, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuse to continue a checkpoint under other settings; only the epochs of a run of one phase may grow.

    Raises:
        ConfigError: names the checkpoint and every setting that differs, with both values.
    """
    growable = () if current["student.model"] else ("train.epochs",)
    differing = []
    for key in sorted(saved.keys() | current.keys()):
        then, now = saved.get(key), current.get(key)
        grown = key in growable and isinstance(then, int) and isinstance(now, int) and now >= then
        if then != now and not grown:
            differing.append(f"{key}: {then!r} in the checkpoint, {now!r} now")
    if differing:
        listed = "\n  ".join(differing)
        raise ConfigError(
            f"checkpoint {path} was written under different settings or data:\n  {listed}\n"
            "  fix: use the same ones, or another --run_dir, or --resume never"
        )
