"""Metrics: accuracy, ROC-AUC over tasks with missing labels, RMSE, Hits@k. They equal OGB's Evaluators."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from ..errors import ArgumentError, ConfigError, DataError, NotFiniteError
from .arrays import Array


def accuracy(prediction: Tensor, y: Tensor) -> float:
    """Compute the fraction of rows whose largest logit is the label.

    Args:
        prediction: logits [N, C], or class ids [N].
        y: class ids [N] or [N, 1].
    """
    y = y.reshape(-1)
    if prediction.ndim == 2:
        _check_finite("accuracy", prediction)
        prediction = prediction.argmax(1)
    if prediction.shape != y.shape or len(y) == 0:
        raise ArgumentError(
            f"metrics.accuracy: expected one prediction per label, got {list(prediction.shape)} and {list(y.shape)}"
        )
    return float((prediction == y).double().mean())


def rocauc(prediction: Tensor, y: Tensor) -> float:
    """Compute the area under the ROC curve, averaged over the tasks that have both classes; ties count half.

    Args:
        prediction: scores [N, tasks], larger = more likely 1.
        y: 0, 1 or NaN (missing) [N, tasks].

    Raises:
        DataError: no task has both classes.
    """
    scores, labels = _pair("rocauc", prediction, y)
    areas = [_area(scores[:, task], labels[:, task]) for task in range(labels.shape[1])]
    known = [area for area in areas if area is not None]
    if not known:
        raise DataError("metrics.rocauc: no task has both positive and negative labels, so ROC-AUC is undefined")
    return float(np.mean(known))


def rmse(prediction: Tensor, y: Tensor) -> float:
    """Compute the root mean squared error over the known labels, averaged over tasks.

    Args:
        prediction: [N, tasks].
        y: real or NaN (missing) [N, tasks].
    """
    values, labels = _pair("rmse", prediction, y)
    known = ~np.isnan(labels)
    if not known.any(0).all():
        raise DataError("metrics.rmse: a task has no labels at all, so its error is undefined")
    squares = np.where(known, (values - np.where(known, labels, 0.0)) ** 2, 0.0)
    return float(np.sqrt(squares.sum(0) / known.sum(0)).mean())


def hits(positive: Tensor, negative: Tensor, k: int) -> float:
    """Compute Hits@k, the fraction of positive scores above the k-th largest negative score."""
    if negative.numel() < k:
        return 1.0
    return float((positive > negative.topk(k).values[-1]).double().mean())


_SCORES: dict[str, Callable[[Tensor, Tensor], float]] = {"accuracy": accuracy, "rocauc": rocauc, "rmse": rmse}
NAMES = tuple(_SCORES)


def evaluate(metric: str, prediction: Tensor, y: Tensor) -> float:
    """Compute the metric called ``metric``: 'accuracy', 'rocauc' or 'rmse'."""
    return _lookup(metric)(prediction, y)


def better(metric: str, score: float, than: float, ties: bool = False) -> bool:
    """Whether a score beats another one: more accuracy and ROC-AUC, less RMSE; any number beats NaN."""
    if math.isnan(than):
        return not math.isnan(score)
    ahead = score < than if _lookup(metric) is rmse else score > than
    return ahead or (ties and score == than)


def check_name(metric: str) -> None:
    """Refuse a metric that there is none of.

    Raises:
        ConfigError: naming the metrics.
    """
    _lookup(metric)


def check_parts(name: str, metric: str, y: Tensor, parts: Mapping[str, Tensor]) -> None:
    """Check before any work that there are labels to train on, and that validation and test can be scored.

    Args:
        name: of the data set.
        metric: of the labels.
        y: labels, class ids [N] or [N, tasks].
        parts: ids of 'train', 'val' and 'test'.

    Raises:
        DataError: naming the part, and the class that it lacks.
    """

    def fail(part: str, what: str) -> NoReturn:
        fix = "choose another split with --data.split or --data.split_seed, or add labels"
        raise DataError(f"data '{name}': the {part} part has {what}\n  fix: {fix}")

    for part, ids in parts.items():
        rows = y[ids] if y.ndim == 2 else y[ids, None]
        known = ~rows.isnan()
        if not bool(known.any()):
            fail(part, "no label at all")
        if part == "train" or metric == "accuracy":
            continue
        ones, zeros = (rows == 1).any(0), (rows == 0).any(0)
        if metric == "rocauc" and not bool((ones & zeros).any()):
            lacks = "both classes in no task"
            if not bool(ones.any() & zeros.any()):
                lacks = f"no label {int(bool(zeros.any()))}"
            fail(part, f"{lacks}, so ROC-AUC is undefined there")
        if metric == "rmse" and not bool(known.any(0).all()):
            fail(part, f"no label of task {int((~known.any(0)).nonzero()[0])}, so RMSE is undefined there")


def _lookup(metric: str) -> Callable[[Tensor, Tensor], float]:
    if metric not in _SCORES:
        raise ConfigError(f"metrics: expected 'metric' to be one of {', '.join(NAMES)}, got '{metric}'")
    return _SCORES[metric]


def _area(scores: Array, labels: Array) -> float | None:
    positive, negative = scores[labels == 1], np.sort(scores[labels == 0])
    if len(positive) == 0 or len(negative) == 0:
        return None
    below = np.searchsorted(negative, positive, side="left")
    not_above = np.searchsorted(negative, positive, side="right")
    return float((below + not_above).mean() / (2 * len(negative)))


def _pair(name: str, prediction: Tensor, y: Tensor) -> tuple[Array, Array]:
    _check_finite(name, prediction)
    prediction, y = (values.unsqueeze(1) if values.ndim == 1 else values for values in (prediction, y))
    if prediction.shape != y.shape:
        raise ArgumentError(
            f"metrics.{name}: expected 'prediction' in the shape of 'y', "
            f"got {list(prediction.shape)} and {list(y.shape)}"
        )
    return prediction.detach().double().numpy(force=True), y.double().numpy(force=True)


def _check_finite(name: str, prediction: Tensor) -> None:
    # A diverged model must not get a score: argmax and sort would rank NaN like a number.
    if not bool(torch.isfinite(prediction).all()):
        raise NotFiniteError(f"metrics.{name}: expected finite predictions, got NaN or infinity; did training diverge?")
