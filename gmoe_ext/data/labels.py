"""Labels of nodes and molecules: what they are, and which metric scores them. Nothing ambiguous is guessed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import metrics
from .arrays import Array, Arrays

_SHOWN = 8


class Labels(NamedTuple):
    """Checked labels.

    Attributes:
        y: class ids 0, 1, ... int64 [N], -1 = unlabelled (nodes); float32 [G, tasks], NaN = missing (otherwise).
        metric: that scores them.
        class_names: where known; the ids in the file where those are not 0, 1, ...
        labelled: which rows have a label, bool [N].
        outputs: width of a model's output: number of classes or of tasks.
    """

    y: Tensor
    metric: str
    class_names: tuple[str, ...]
    labelled: Array
    outputs: int


def read_node_labels(arrays: Arrays, num_nodes: int) -> Labels:
    """Read ``y``, class ids [N] or [N, 1] with -1 or NaN for unlabelled nodes, or 0/1/NaN labels [N, tasks].

    Nodes listed in ``unlabelled_nodes`` have no label either, whatever stands in ``y``.
    """
    y = arrays.take("y", "real", (num_nodes,), (num_nodes, None))
    labelled = np.ones(num_nodes, dtype=bool)
    if "unlabelled_nodes" in arrays:
        labelled[arrays.indices("unlabelled_nodes", num_nodes, (None,))] = False
    if y.ndim == 1 or y.shape[1] == 1:
        return _classes(arrays, y.reshape(-1), labelled, "node")
    arrays.use("class_names")
    tasks = _read_tasks(arrays, y, "rocauc")
    return tasks._replace(labelled=labelled & tasks.labelled)


def read_molecule_labels(arrays: Arrays, num_graphs: int, metric: str | None) -> Labels:
    """Read ``y`` [G] or [G, tasks], NaN = missing; the metric is inferred from the values if it is None.

    Labels that are all 0 or 1, or all -1 or +1, mean 'rocauc', real numbers 'rmse'. Whole numbers in one column are
    either classes or numbers, so they need a metric, unless most of them occur once.
    """
    y = arrays.take("y", "real", (num_graphs,), (num_graphs, None))
    y = y[:, None] if y.ndim == 1 else y
    if y.shape[1] == 0:
        arrays.fail(f"expected 'y' of shape [{num_graphs}, tasks], got {[num_graphs, 0]}")
    if metric is None:
        metric = _infer(arrays, y)
    metrics.check_name(metric)
    everyone = np.ones(num_graphs, dtype=bool)  # a molecule without a label costs nothing: every loss leaves it out
    if metric != "accuracy":
        return _read_tasks(arrays, y, metric)._replace(labelled=everyone)
    if y.shape[1] != 1 or np.isnan(y).any():
        got = f"{y.shape[1]} per molecule" if y.shape[1] != 1 else f"NaN in row {np.isnan(y).argmax()}"
        arrays.fail(f"metric 'accuracy' expects a class id for every molecule in 'y', got {got}")
    classes = _classes(arrays, y.reshape(-1), everyone, "molecule")
    return classes._replace(y=classes.y[:, None].float())


def _infer(arrays: Arrays, y: Array) -> str:
    known = y[~np.isnan(y)]
    if _only(known, 0, 1) or _only(known, -1, 1):
        return "rocauc"
    if _only(known, -1, 0, 1):
        arrays.fail(
            "labels -1, 0 and 1 in 'y' are ambiguous: 0 or -1 may stand for a missing label\n"
            "  fix: write missing labels as NaN, or say that these are numbers with --data.metric rmse"
        )
    if y.shape[1] == 1 and bool(((known >= 0) & (known == np.floor(known)) & np.isfinite(known)).all()):
        different = len(np.unique(known))
        if 2 * different <= len(known):
            arrays.fail(
                f"the labels in 'y' are {different} different whole numbers, which may be classes or numbers\n"
                "  fix: pass --data.metric accuracy for classes, rmse for numbers"
            )
    return "rmse"


def _read_tasks(arrays: Arrays, y: Array, metric: str) -> Labels:
    known = y[~np.isnan(y)]
    if metric == "rocauc" and not _only(known, 0, 1):
        if not _only(known, -1, 1):
            got = known[~np.isin(known, (0, 1))][0]
            arrays.fail(
                f"metric 'rocauc' expects labels 0, 1 or missing (NaN) in 'y', got {got:g}\n  fix: pass --data.metric"
            )
        y = (y + 1) / 2
        arrays.remark("labels -1 and +1 are read as 0 and 1")
    with np.errstate(over="ignore"):
        narrow = torch.from_numpy(y.astype(np.float32))
    if bool(narrow.isinf().any()):
        arrays.fail("expected finite or missing labels in 'y', got infinity (or a number that float32 cannot hold)")
    labelled = np.asarray((~np.isnan(y)).any(axis=1))
    return Labels(narrow, metric, (), labelled, y.shape[1])


def _only(values: Array, *allowed: int) -> bool:
    return bool(np.isin(values, allowed).all())


def _classes(arrays: Arrays, y: Array, labelled: Array, item: str) -> Labels:
    given, names = labelled, _read_names(arrays)
    labelled = labelled & ~np.isnan(y)
    if names or not _only(y[labelled], -1, 1):
        labelled = labelled & (y != -1)
    ids = np.unique(y[labelled])
    bad = np.flatnonzero(labelled & ~((y >= 0) & (y == np.floor(y)) & np.isfinite(y)))
    if len(bad) and not np.array_equal(ids, (-1, 1)):
        arrays.fail(f"expected class ids 0, 1, ... (-1 or NaN: unlabelled) in 'y', got {y[bad[0]]} at {item} {bad[0]}")
    if len(ids) > max(10, labelled.sum() // 2):
        arrays.fail(
            f"'y' has {len(ids):,} different values for {labelled.sum():,} labels: these are numbers to predict, not "
            f"classes\n  fix: number the classes, or, for molecules, pass --data.metric rmse"
        )
    if names and len(ids) and ids[-1] >= len(names):
        arrays.fail(f"label {int(ids[-1])} has no name; 'class_names' has {len(names)}")
    if not names and not np.array_equal(ids, np.arange(len(ids))):
        names = tuple(str(int(value)) for value in ids)
        more = f", ... {names[-1]}" if len(names) > _SHOWN else ""
        arrays.remark(f"class ids {', '.join(names[:_SHOWN])}{more} are the outputs 0 to {len(names) - 1}")
        position = np.searchsorted(ids, np.where(labelled, y, ids[0]))
        y = np.where(labelled, position, -1)
    # A placeholder of a node that is listed as unlabelled stays, where it is a class id.
    kept = labelled | (~given & (y >= 0) & (y < (len(names) or len(ids))) & (y == np.floor(y)))
    whole = np.where(kept, y, -1).astype(np.int64)
    return Labels(torch.from_numpy(whole), "accuracy", names, labelled, len(names) or len(ids))


def _read_names(arrays: Arrays) -> tuple[str, ...]:
    if "class_names" not in arrays:
        return ()
    names = tuple(arrays.take("class_names", "text", (None,)).tolist())
    if len(set(names)) != len(names):
        arrays.fail("expected different names in 'class_names', got one twice")
    return names
