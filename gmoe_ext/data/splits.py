"""Splits: which items train, validate and test. Given by a file or drawn from a seed, and always checked."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .arrays import Array, Arrays, read_npz


class Split(NamedTuple):
    """Item ids of the three parts, int64, ascending and disjoint; ``rule`` says where they come from."""

    train_idx: Tensor
    val_idx: Tensor
    test_idx: Tensor
    rule: str


_EMPTY = torch.zeros(0, dtype=torch.int64)
NONE = Split(_EMPTY, _EMPTY, _EMPTY, "none")


def choose(
    name: str,
    folder: Path,
    rule: str,
    y: Tensor,
    seed: int = 0,
    per_class_counts: tuple[int, int] | None = None,
    exclude: Tensor | None = None,
) -> tuple[Split, dict[str, str]]:
    """Take the split of the data set ``name`` from ``folder``/NAME_split*.npz, or draw one of its labels ``y``.

    ``per_class_counts`` is None for molecules, which are drawn at random. Also returns the digest of the file read.

    Raises:
        DataError: the split is not found, ambiguous or bad, or cannot be drawn.
    """
    if rule not in ("per_class", "random"):
        found = _beside(name, folder, len(y), rule)
        if found is not None:
            return found
    if rule == "per_class" and per_class_counts is None:
        raise DataError(f"data '{name}': split 'per_class' is for nodes\n  fix: use split 'random' for molecules")
    if rule == "random" or per_class_counts is None:
        return random(len(y), seed), {}
    return per_class(y, *per_class_counts, seed, exclude), {}


def per_class(
    y: Tensor, train_per_class: int = 20, val_per_class: int = 30, seed: int = 0, exclude: Tensor | None = None
) -> Split:
    """Draw training, then validation nodes for every class; the rest are test nodes (RbM, section 4.1).

    Args:
        y: class ids, int64 [N].
        train_per_class, val_per_class: nodes of each class.
        seed: of numpy.random.default_rng.
        exclude: nodes that belong to no part, such as unlabelled ones.

    Raises:
        DataError: a class has too few nodes.
    """
    labels = y.numpy(force=True)
    generator = np.random.default_rng(seed)
    free = np.ones(len(labels), dtype=bool)
    if exclude is not None:
        free[exclude.numpy(force=True)] = False
    classes, sizes = np.unique(labels[free], return_counts=True)
    need = train_per_class + val_per_class
    for kind, size in zip(classes, sizes, strict=True):
        if size < need:
            raise DataError(
                f"split per_class: class {kind} has {size} nodes, expected at least {need} "
                f"({train_per_class} to train, {val_per_class} to validate)\n  fix: lower --data.train_per_class"
            )
    parts: list[Array] = []
    for count in (train_per_class, val_per_class):
        drawn = [generator.choice(np.flatnonzero(free & (labels == kind)), count, replace=False) for kind in classes]
        parts.append(np.concatenate(drawn) if drawn else np.zeros(0, dtype=np.int64))
        free[parts[-1]] = False
    return check_split(parts[0], parts[1], np.flatnonzero(free), size=len(labels), rule="per_class")


def random(size: int, seed: int = 0, train: float = 0.8, val: float = 0.1) -> Split:
    """Shuffle ``size`` items and cut them into fractions ``train``, ``val`` and the rest."""
    order = np.random.default_rng(seed).permutation(size)
    first, second = int(train * size), int((train + val) * size)
    return check_split(order[:first], order[first:second], order[second:], size=size, rule="random")


def from_arrays(arrays: Arrays, size: int, rule: str) -> Split:
    """Read and check ``train_idx``, ``val_idx`` (or ``valid_idx``) and ``test_idx``."""
    val = "val_idx" if "val_idx" in arrays else "valid_idx"
    parts = (arrays.take(name, "integer", (None,)) for name in ("train_idx", val, "test_idx"))
    return check_split(*parts, size=size, rule=rule, origin=arrays.origin)


def check_split(train: Array, val: Array, test: Array, *, size: int, rule: str, origin: object = "split") -> Split:
    """Sort the three parts, and refuse an empty part and ids that are out of range, repeated or in two parts.

    Raises:
        DataError: naming the part and the id.
    """
    owner = np.full(size, -1)
    names = ("train", "val", "test")
    for part, (name, ids) in enumerate(zip(names, (train, val, test), strict=True)):
        if len(ids) == 0:
            raise DataError(f"{origin}: the {name} part is empty")
        bad = np.flatnonzero((ids < 0) | (ids >= size))
        if len(bad):
            raise DataError(
                f"{origin}: index out of range: {name} id at position {bad[0]} is {ids[bad[0]]}, "
                f"expected 0 <= id < {size}"
            )
        taken = np.flatnonzero(owner[ids] >= 0)
        if len(taken):
            twice = ids[taken[0]]
            raise DataError(f"{origin}: id {twice} is in both the {names[owner[twice]]} and {name} part")
        owner[ids] = part
        if int((owner == part).sum()) != len(ids):
            values, counts = np.unique(ids, return_counts=True)
            raise DataError(f"{origin}: id {values[counts.argmax()]} is repeated in the {name} part")
    train_idx, val_idx, test_idx = (torch.from_numpy(np.sort(ids).astype(np.int64)) for ids in (train, val, test))
    return Split(train_idx, val_idx, test_idx, rule)


def _beside(name: str, folder: Path, size: int, rule: str) -> tuple[Split, dict[str, str]] | None:
    """Read NAME_split.npz or NAME_split_RULE.npz; the split is named after RULE."""
    files = {path.stem.removeprefix(f"{name}_split"): path for path in folder.glob(f"{name}_split*.npz")}
    found = {ending.lstrip("_") or "file": path for ending, path in files.items()}
    if rule in ("auto", "file") and len(found) > 1:
        raise DataError(
            f"data '{name}': found several splits: {', '.join(sorted(found))}\n  fix: choose one with --data.split"
        )
    chosen = next(iter(found), None) if rule in ("auto", "file") else rule
    if chosen in found:
        arrays = read_npz(found[chosen])
        return from_arrays(arrays, size, chosen), arrays.sha256
    if rule == "auto":
        return None
    wanted = f"{name}_split{'*' if rule == 'file' else '_' + rule}.npz"
    raise DataError(f"data '{name}' has no split '{rule}'\n  looked for: {folder / wanted}")
