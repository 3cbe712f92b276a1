"""One run: its directory, metrics, checkpoints, progress and signals."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .. import checkpoint
from ..atomic_write import writing
from ..checkpoint import CheckpointError
from ..data import MoleculeData, NodeData
from ..errors import GmoeError
from ..models.registry import Model
from ..terminal import Interrupted, Progress, Stop
from . import fit_state
from .config import Config, TrainConfig, fingerprint
from .device import peak_memory
from .fit_state import FitState, Task

_ANOTHER_RUN = "fix: --resume never starts from scratch, --resume PATH continues another run"


class Run:
    """What a fit writes to and reads from.

    Args:
        config: settings of the run; stored in every checkpoint, and compared when one is continued.
        directory: the run directory; created at the first write.
        progress: where lines and bars go.
        stop: a request to stop, see `terminal.catch_signals`.
        claim: called once by `ready`, before the first write.

    Attributes:
        settings: what a checkpoint of this run was written under: settings that decide numbers, digests of the data.
        last_good: the last checkpoint of the current phase and its step, for messages.
    """

    def __init__(
        self,
        config: Config,
        directory: Path,
        progress: Progress | None = None,
        stop: Stop | None = None,
        claim: Callable[[Run], None] | None = None,
    ) -> None:
        self.config = config
        self.directory = directory
        self.progress = progress or Progress()
        self.dry_run = config.dry_run
        self.settings = fingerprint(config)
        self.last_good = "none yet"
        self._stop, self._claim = stop or Stop(), claim
        self._metrics_end = 0  # metrics.jsonl up to the checkpoint that is continued; later records are written anew
        self._saved_at = time.monotonic()
        self._val: float | None = None  # last validation score, shown until there is another

    def ready(self, data: NodeData | MoleculeData) -> None:
        """Take over the run directory. Tasks call it when all that can be refused has been checked."""
        self.settings |= {f"sha256 of {file}": digest for file, digest in data.sha256.items()}
        if self._claim is not None:
            self._claim(self)

    @property
    def metrics_path(self) -> Path:
        """The file with one JSON record per epoch and phase."""
        return self.directory / "metrics.jsonl"

    def checkpoint_path(self, phase: str) -> Path:
        """The checkpoint file of a phase."""
        return self.directory / "checkpoints" / f"{phase}.safetensors"

    def begin(self, phase: str) -> None:
        """Seed a phase. Call it before the phase's model is built."""
        self.last_good = "none yet"
        fit_state.seed_all(self.config.seed, phase)

    @contextmanager
    def fitting(self, task: Task, train: TrainConfig, state: FitState) -> Iterator[None]:
        """Show progress inside the block, and let a signal wait for the next checkpoint."""
        self._saved_at = time.monotonic()
        self._val = None
        self._stop.awaited = True
        try:
            with self.progress.phase(task.phase, "epoch", train.epochs, state.epochs):
                yield
        finally:
            self._stop.awaited = False

    def step_done(self, task: Task, train: TrainConfig, state: FitState) -> None:
        """Stop if a signal came, and write a checkpoint if one is due."""
        if self._stop.requested is not None:
            self.save(task, state)
            raise Interrupted(self._stop.requested)
        if time.monotonic() - self._saved_at >= train.checkpoint_s:
            self.save(task, state)

    def epoch_done(
        self, task: Task, train: TrainConfig, state: FitState, losses: dict[str, float], scores: dict[str, float]
    ) -> None:
        """Record and show an epoch, then stop or write a checkpoint as after a step."""
        load, memory = task.expert_load(), peak_memory(task.device)
        record: dict[str, Any] = {"phase": task.phase, "epoch": state.epochs, "step": state.steps}
        record |= losses | scores | {"wall_s": round(state.wall_s, 3)}
        if load is not None:
            record["expert_load"] = [round(share, 4) for share in load]
        if memory is not None:
            record["gpu_bytes"] = memory
        with writing(self.metrics_path):
            self.directory.mkdir(parents=True, exist_ok=True)
            with open(self.metrics_path, "ab") as file:
                file.truncate(min(self._metrics_end, file.tell()))
                file.write((json.dumps(record) + "\n").encode())
        self._metrics_end = self.metrics_path.stat().st_size
        self._val = scores.get("val", self._val)
        text = f"loss {losses['loss']:.3f}" + ("" if self._val is None else f"  val {self._val:.3f}")
        self.progress.advance(state.epochs, text, _details(load, memory))
        self.step_done(task, train, state)

    def save(self, task: Task, state: FitState) -> None:
        """Write the checkpoint of the task's phase."""
        state.metrics_bytes = self._metrics_end  # with the records of earlier phases
        fit = {f.name: getattr(state, f.name) for f in dataclasses.fields(state) if f.name not in ("best", "sums")}
        model = task.model
        content = {
            "phase": task.phase,
            # What `models.build` needs to build the network again, for readers that do not train (gmoe_ext.export).
            "model": {"name": model.name, "options": model.config} if isinstance(model, Model) else None,
            "settings": self.settings,
            "fit": fit,
            "weights": model.state_dict(),
            "best": state.best,
            "sums": state.sums,
            "optimizer": fit_state.optimizer_state(task.optimizer),
            "rng": fit_state.rng_state(task.device),
            "task": task.state(),
        }
        self._check_finite(task, state)
        path = self.checkpoint_path(task.phase)
        checkpoint.save(path, *checkpoint.split(content))
        self.last_good = f"{path}, step {state.steps}"
        self._saved_at = time.monotonic()

    def _check_finite(self, task: Task, state: FitState) -> None:
        for name, value in task.model.named_parameters():
            if not bool(torch.isfinite(value).all()):
                where = f"step {state.steps} (epoch {state.epochs + (state.batches > 0)}, batch {state.batches})"
                raise GmoeError(
                    f"{task.phase}: weight '{name}' is no longer finite after {where}; last good checkpoint: "
                    f"{self.last_good}\n  fix: lower the learning rate, or check the features"
                )

    def read(self, path: Path, check_only: bool = False) -> dict[str, Any] | None:
        """Read a checkpoint of this run; None without any.

        If it is damaged, the one before it takes its place and a line says so (not if ``check_only``).

        Raises:
            CheckpointError: it is damaged, and so is the one before it.
            ConfigError: it was written under different settings, or on other data.
        """
        try:
            found = checkpoint.load_good(path)
        except CheckpointError as error:
            raise CheckpointError(f"{error}\n  {_ANOTHER_RUN}") from error
        if found is None:
            return None
        tensors, scalars, note = found
        settings = scalars.get("settings")
        if not isinstance(settings, dict):
            raise CheckpointError(f"{path}: expected a checkpoint of a training run, got one without settings")
        fit_state.check_same(path, settings, self.settings)
        if note and not check_only:
            self.progress.line(path.stem, note)
            with writing(path):
                checkpoint.previous(path).replace(path)
        return checkpoint.join(tensors, scalars)

    def check(self, checkpoints: Path) -> None:
        """Read every checkpoint in a folder; see `read` for what is refused."""
        for name in sorted({path.name.removesuffix(".previous") for path in checkpoints.glob("[!.]*.safetensors*")}):
            self.read(checkpoints / name, check_only=True)

    def restore(self, task: Task) -> FitState | None:
        """Restore the checkpoint of the task's phase, and note where its metrics end.

        Returns:
            Where the fit stood, or None without a checkpoint.

        Raises:
            CheckpointError, ConfigError: see `read`; or it belongs to another model.
        """
        path = self.checkpoint_path(task.phase)
        content = self.read(path)
        if content is None:
            return None
        try:
            task.model.load_state_dict(content["weights"])
            fit_state.set_optimizer_state(task.optimizer, content["optimizer"])
            task.load_state(content["task"])
            state = FitState.of(content, task.model.state_dict(), task.device)
            fit_state.set_rng_state(content["rng"], task.device)
        except (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"checkpoint {path} does not fit this model: {error}") from error
        self._metrics_end, self.last_good = state.metrics_bytes, f"{path}, step {state.steps}"
        self.progress.line(
            task.phase, f"continues after step {state.steps} (epoch {state.epochs}, batch {state.batches})"
        )
        return state


def _details(load: list[float] | None, memory: int | None) -> str:
    """The experts' shares of the rows, and the most memory that tensors took on a GPU so far."""
    shares = "" if load is None else "load " + " ".join(f"{share:.2f}" for share in load)
    peak = "" if memory is None else f"{memory / 1e9:.2f} GB"
    return "  ".join(part for part in (shares, peak) if part)
