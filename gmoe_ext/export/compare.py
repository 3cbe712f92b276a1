"""Compare an exported student with its model: what rounding sums or weights costs, on given rows.

N rows, D features, P position columns, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.arrays import read_npz
from ..errors import DataError
from ..models.registry import Model
from .fold import EPS

_ROWS_AT_ONCE = 4096
RANDOM_ROWS = 256


class Served(Protocol):
    """A student that predicts without its model: packed, or exported to another runtime."""

    def predict(self, x: NDArray[Any], nodes: NDArray[Any] | None = None) -> NDArray[np.float32]:
        """Compute the logits [N, C]."""

    def info(self) -> dict[str, Any]:
        """Return its document, of which features and layers are read."""


@dataclass(frozen=True)
class Comparison:
    """How a served student compares with its model.

    Attributes:
        rows: number of rows compared.
        largest_difference: of a logit, relative to the largest logit.
        same_class: share of rows for which both predict the same class.
        accuracy: of the served student, in [0, 1]; None without labels.
        model_accuracy: of the model.
    """

    rows: int
    largest_difference: float
    same_class: float
    accuracy: float | None = None
    model_accuracy: float | None = None

    def __str__(self) -> str:
        text = f"logits off by {self.largest_difference:.1e} at most, same class in {self.same_class:.2%}"
        if self.accuracy is not None and self.model_accuracy is not None:
            change = 100 * (self.accuracy - self.model_accuracy)
            text += f", accuracy {self.accuracy:.2%} ({change:+.2f} points against the model)"
        return f"{text}, of {self.rows:,} rows"


@dataclass(frozen=True)
class Rows:
    """Rows to compare on.

    Attributes:
        x: [N, D] features as callers of the file pass them, or [N, D + P] with positions.
        nodes: [N] rows of the file's position table, -1 for none; None if x has the positions.
        labels: [N] true classes, negative for unknown; None if all are unknown.
    """

    x: NDArray[Any]
    nodes: NDArray[Any] | None = None
    labels: NDArray[Any] | None = None

    def check(self, outputs: int, nodes: int) -> None:
        """Refuse labels that no output stands for, and nodes that a table of ``nodes`` rows does not hold.

        Raises:
            DataError: names the first one.
        """
        for name, ids, bound in (("y", self.labels, outputs), ("nodes", self.nodes, nodes)):
            if ids is None:
                continue
            bad = np.flatnonzero((ids >= bound) | ((ids < -1) & (name == "nodes")))
            if len(bad):
                found = f"{ids[bad[0]]} in row {bad[0]}"
                raise DataError(f"expected '{name}' in [-1, {bound}), got {found}")


def random_rows(served: Served, positions: Tensor | None = None, seed: int = 0) -> Rows:
    """Draw normally distributed rows, with positions in them, or with random nodes of a given table."""
    random, info = np.random.default_rng(seed), served.info()
    if positions is None:
        return Rows(random.standard_normal((RANDOM_ROWS, info["layers"][0]["in"]), np.float32))
    x = random.standard_normal((RANDOM_ROWS, info["features"]["columns"]), np.float32)
    return Rows(x, random.integers(-1, len(positions), RANDOM_ROWS))


def read_rows(path: Path) -> Rows:
    """Read rows from an .npz file: x, and optionally the integers nodes and y (the classes, negative for unknown).

    Raises:
        DataError: the file is missing or damaged, has no x or values that are not finite, or its arrays do not fit each
            other.
    """
    arrays = read_npz(path, ("x", "nodes", "y"))
    x = arrays.finite("x", (None, None))
    nodes, labels = (arrays.take(name, "integer", (len(x),)) if name in arrays else None for name in ("nodes", "y"))
    return Rows(x, nodes, labels)


def compare(model: Model, served: Served, rows: Rows, positions: Tensor | None = None) -> Comparison:
    """Predict the same rows with both.

    Args:
        model: the model that ``served`` was made from, in evaluation mode.
        served: a packed student, or an exported one.
        rows: where to compare.
        positions: [N, P] the table in the file, if rows have nodes.

    Raises:
        ValueError: rows do not fit the student.
        DataError: there is no row, a label that no output stands for, or a node outside the position table.

    Deterministic: yes.

    Examples:
        >>> packed = PackedStudent.load(pack(model, "student.safetensors", dtype="int8"))
        >>> print(compare(model, packed, random_rows(packed)))
    """
    rows.check(model.config["out_dim"], 0 if positions is None else len(positions))
    logits, expected = [], []
    for begin in range(0, len(rows.x), _ROWS_AT_ONCE):
        some = slice(begin, begin + _ROWS_AT_ONCE)
        nodes = None if rows.nodes is None else rows.nodes[some]
        logits.append(served.predict(rows.x[some], nodes))
        with torch.inference_mode():
            expected.append(model(prepare(served, rows.x[some], nodes, positions)).logits.float().cpu().numpy())
    if not logits:
        raise DataError("compare: expected at least one row, got none")
    return _summary(np.concatenate(logits), np.concatenate(expected), rows.labels)


def prepare(served: Served, x: NDArray[Any], nodes: NDArray[Any] | None, positions: Tensor | None) -> Tensor:
    """Convert rows to the model's inputs: normalised features followed by positions."""
    features = served.info()["features"]
    inputs = torch.tensor(x, dtype=torch.float32)
    columns = inputs[:, : features["columns"]]
    if features["normalize"] != "none":
        order = 1 if features["normalize"] == "row_l1" else 2
        columns /= columns.norm(p=order, dim=1, keepdim=True).clamp_min(EPS)
    if nodes is None or positions is None:
        return inputs
    table = torch.cat([positions.float().cpu(), torch.zeros(1, positions.shape[1])])  # node -1 is the last row
    return torch.cat([inputs, table[torch.from_numpy(nodes.astype(np.int64))]], 1)


def _summary(logits: NDArray[np.float32], expected: NDArray[np.float32], labels: NDArray[Any] | None) -> Comparison:
    chosen, wanted = logits.argmax(1), expected.argmax(1)
    largest = max(float(np.abs(expected).max()), np.finfo(np.float32).tiny)
    common = (len(logits), float(np.abs(logits - expected).max() / largest), float((chosen == wanted).mean()))
    known = None if labels is None else labels >= 0
    if labels is None or known is None or not known.any():
        return Comparison(*common)
    accuracy, model_accuracy = (float((kind == labels)[known].mean()) for kind in (chosen, wanted))
    return Comparison(*common, accuracy, model_accuracy)
