"""Load the student of a training run, and the network that taught it, from its directory.

``checkpoints/PHASE.safetensors`` contains the weights of the best validation epoch and how to build the model,
``checkpoints/inputs.safetensors`` positions and class names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import checkpoint, models
from ..errors import ConfigError, DataError
from ..models.registry import Model
from .fold import STUDENTS, Content, preparation


@dataclass(frozen=True)
class TrainedModel:
    """A model of a run.

    Attributes:
        model: in evaluation mode, with the weights of its best validation epoch.
        phase: the fit it comes from.
        val_best: its best validation score.
        row_normalized: whether it was trained on features divided by their row's sum.
    """

    model: Model
    phase: str
    val_best: float
    row_normalized: bool


@dataclass(frozen=True)
class TrainedStudent(TrainedModel):
    """A student of a run, with what its file contains beside the model.

    Attributes:
        class_names: names of the outputs, or None.
        positions: [N, P] position of every node of the data, or None.
    """

    class_names: list[str] | None
    positions: Tensor | None

    @property
    def content(self) -> Content:
        """What its file contains beside the model."""
        normalize = preparation(self.row_normalized)
        return {"class_names": self.class_names, "normalize": normalize, "positions": self.positions}


def load_student(run_dir: Path) -> TrainedStudent:
    """Load the best student of a run directory, by validation score.

    Raises:
        ConfigError: there is no run, or it has not trained a student yet.
        DataError: a checkpoint is damaged.
    """
    best = _best(run_dir, lambda name: name in STUDENTS)
    if best is None:
        raise ConfigError(
            f"{run_dir}: no trained student ({', '.join(STUDENTS)}) in its checkpoints\n"
            "  fix: train one: python -m gmoe_ext.train --teacher.model sage --student.model rbm"
        )
    names, positions = _inputs(run_dir / "checkpoints" / "inputs.safetensors")
    return TrainedStudent(**vars(best), class_names=names, positions=positions)


def load_teacher(run_dir: Path) -> TrainedModel:
    """Load the teacher of a run's student: the best of the models that read the graph, by validation score.

    Raises:
        ConfigError: there is no run, or it has no such model.
        DataError: a checkpoint is damaged.
    """
    best = _best(run_dir, lambda name: not models.graph_free(name))
    if best is None:
        raise ConfigError(f"{run_dir}: no trained teacher in its checkpoints")
    return best


def _best(run_dir: Path, wanted: Callable[[str], bool]) -> TrainedModel | None:
    directory = run_dir / "checkpoints"
    if not directory.is_dir():
        raise ConfigError(f"{run_dir}: expected a run directory with checkpoints, as gmoe_ext.train writes it")
    paths = sorted(directory.glob("*.safetensors"))
    found = [model for path in paths if (model := _read_model(path, wanted)) is not None]
    return max(found, key=lambda one: one.val_best, default=None)  # node data are scored by accuracy


def _read_model(path: Path, wanted: Callable[[str], bool]) -> TrainedModel | None:
    tensors, scalars = checkpoint.load(path)
    built = scalars.get("model")
    try:
        if built is None or not wanted(built["name"]):
            return None
        best, val_best = checkpoint.select("best", tensors), float(scalars["fit"]["val_best"])
        if not best or math.isnan(val_best):
            return None  # still in pre-training
        row_normalized = bool(scalars["settings"]["data.row_normalize"])
        model = _build(built["name"], built["options"], best)
        return TrainedModel(model, str(scalars["phase"]), val_best, row_normalized)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"checkpoint {path} does not fit the model it names: {error}") from error


def _build(name: str, options: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Model:
    """Build a model and give it the weights, whose shapes are compared before memory is asked for.

    Raises:
        ValueError: options or shapes do not fit the weights.
    """
    held = sum(weight.numel() for weight in weights.values())
    large = [option for option, value in options.items() if isinstance(value, int) and value > held]
    if large or options.get("num_layers", 0) > len(weights):
        raise ValueError(f"its options ask for more than the {held:,} weights it holds")
    with torch.device("meta"):
        expected = models.build(name, **options).state_dict()
    differing = [key for key in {**expected, **weights} if _shape(expected, key) != _shape(weights, key)]
    if differing:
        key = differing[0]
        raise ValueError(f"expected '{key}' of shape {_shape(expected, key)}, got {_shape(weights, key)}")
    model = models.build(name, **options)
    model.load_state_dict(dict(weights))
    return model.eval()


def _shape(weights: Mapping[str, Tensor], name: str) -> list[int] | None:
    return list(weights[name].shape) if name in weights else None


def _inputs(path: Path) -> tuple[list[str] | None, Tensor | None]:
    if not path.exists():
        return None, None
    tensors, scalars = checkpoint.load(path)
    names, positions = scalars.get("class_names") or None, tensors.get("positions")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise DataError(f"checkpoint {path}: expected a list of texts as 'class_names'")
    if positions is not None and not (positions.dim() == 2 and positions.is_floating_point()):
        raise DataError(f"checkpoint {path}: expected 'positions' of shape [N, P], got {list(positions.shape)}")
    return names, positions if positions is not None and positions.numel() else None
