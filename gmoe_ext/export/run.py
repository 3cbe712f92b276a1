"""The student a training run left in its directory, and the network that taught it.

Read are ``checkpoints/PHASE.safetensors`` (weights of the best validation epoch, and what built the model) and
``checkpoints/inputs.safetensors`` (positions and class names).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import models
from ..errors import ConfigError, DataError
from ..models.registry import Model
from .fold import STUDENTS, Normalize, preparation

CHECKPOINT_FORMAT = "gmoe_ext.checkpoint/1"
_BEST = "best/"  # weights of the best validation epoch


@dataclass(frozen=True)
class TrainedStudent:
    """A student of a run, with what its file needs.

    Attributes:
        model: in evaluation, with the weights of its best validation epoch.
        phase: the fit it comes from.
        val_best: its best validation score.
        class_names: names of the outputs, or None.
        positions: [N, P] position of every node of the data, or None.
        normalize: preparation of the features.
    """

    model: Model
    phase: str
    val_best: float
    class_names: list[str] | None
    positions: Tensor | None
    normalize: Normalize


@dataclass(frozen=True)
class TrainedModel:
    """A model of a run.

    Attributes:
        model: in evaluation, with the weights of its best validation epoch.
        phase: the fit it comes from.
        val_best: its best validation score.
        row_normalized: whether it was trained on features divided by their row's sum.
    """

    model: Model
    phase: str
    val_best: float
    row_normalized: bool


def load_student(run_dir: Path) -> TrainedStudent:
    """The best student of a run directory, by validation score.

    Raises:
        ConfigError: there is no run, or it has trained no student yet.
        DataError: a checkpoint is damaged.
    """
    best = _best(run_dir, lambda name: name in STUDENTS)
    if best is None:
        raise ConfigError(
            f"{run_dir}: no trained student ({', '.join(STUDENTS)}) in its checkpoints\n"
            "  mend: train one: python -m gmoe_ext.train --teacher.model sage --student.model rbm"
        )
    names, positions = _inputs(run_dir / "checkpoints" / "inputs.safetensors")
    return TrainedStudent(best.model, best.phase, best.val_best, names, positions, preparation(best.row_normalized))


def load_teacher(run_dir: Path) -> TrainedModel:
    """The network that taught the student of a run: the best of those that read the graph, by validation score.

    Raises:
        ConfigError: there is no run, or no such network in it.
        DataError: a checkpoint is damaged.
    """
    best = _best(run_dir, lambda name: not models.graph_free(name))
    if best is None:
        raise ConfigError(f"{run_dir}: no trained teacher in its checkpoints")
    return best


def _best(run_dir: Path, wanted: Callable[[str], bool]) -> TrainedModel | None:
    found = [model for path in _checkpoints(run_dir) if (model := _read_model(path, wanted)) is not None]
    return max(found, key=lambda one: one.val_best, default=None)  # node data are scored by accuracy


def _checkpoints(run_dir: Path) -> list[Path]:
    directory = run_dir / "checkpoints"
    if not directory.is_dir():
        raise ConfigError(f"{run_dir}: expected a run directory with checkpoints in it, as gmoe_ext.train leaves it")
    return sorted(directory.glob("*.safetensors"))


def _read_model(path: Path, wanted: Callable[[str], bool]) -> TrainedModel | None:
    scalars = _scalars(path)
    built = scalars.get("model")
    if built is None or not wanted(built["name"]):
        return None
    best = _tensors(path, _BEST)
    if not best or math.isnan(scalars["fit"]["val_best"]):
        return None  # still in its pre-training
    model = models.build(built["name"], **built["options"])
    try:
        model.load_state_dict(best)
    except RuntimeError as error:
        raise DataError(f"checkpoint {path} does not fit the model it names: {error}") from error
    row_normalized = scalars["settings"]["data.row_normalize"]
    return TrainedModel(model.eval(), scalars["phase"], scalars["fit"]["val_best"], row_normalized)


def _inputs(path: Path) -> tuple[list[str] | None, Tensor | None]:
    if not path.exists():
        return None, None
    positions = _tensors(path, "").get("positions")
    return _scalars(path).get("class_names") or None, positions if positions is not None and positions.numel() else None


def _scalars(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise DataError(f"checkpoint {path} is damaged: {error}") from error
    if header.get("format") != CHECKPOINT_FORMAT:
        raise DataError(f"{path}: expected a checkpoint of format {CHECKPOINT_FORMAT!r}, got {header.get('format')!r}")
    scalars: dict[str, Any] = json.loads(header["scalars"])
    return scalars


def _tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 (not a mapping)
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}
