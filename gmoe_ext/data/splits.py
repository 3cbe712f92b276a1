"""Which items train, validate and test: seeded rules and their checks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .files import Array, ArrayFile


class Split(NamedTuple):
    """Item ids of the three parts, int64, ascending, disjoint; ``rule`` says where they come from."""

    train_idx: Tensor
    val_idx: Tensor
    test_idx: Tensor
    rule: str


_EMPTY = torch.zeros(0, dtype=torch.int64)
NONE = Split(_EMPTY, _EMPTY, _EMPTY, "none")


def per_class(
    y: Tensor, train_per_class: int = 20, val_per_class: int = 30, seed: int = 0, exclude: Tensor | None = None
) -> Split:
    """Draw training, then validation nodes for every class; the rest tests (RbM, section 4.1).

    Args:
        y: class ids, int64 [N].
        train_per_class: training nodes of each class.
        val_per_class: validation nodes of each class.
        seed: of numpy.random.default_rng.
        exclude: nodes that belong to no part, such as unlabelled ones.

    Raises:
        DataError: a class has too few nodes to leave any for the test.
    """
    labels = y.numpy(force=True)
    generator = np.random.default_rng(seed)
    free = np.ones(len(labels), dtype=bool)
    if exclude is not None:
        free[exclude.numpy(force=True)] = False
    classes = np.unique(labels[free])
    need = train_per_class + val_per_class
    for kind in classes:
        have = int((labels[free] == kind).sum())
        if have < need:
            raise DataError(
                f"split per_class: class {kind} has {have} nodes, expected at least {need} "
                f"({train_per_class} to train, {val_per_class} to validate); lower --data.train_per_class"
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


def from_arrays(arrays: ArrayFile, size: int, rule: str) -> Split:
    """Read ``train_idx``, ``val_idx`` (or ``valid_idx``) and ``test_idx`` and check them."""
    val = "val_idx" if "val_idx" in arrays else "valid_idx"
    train_idx, val_idx, test_idx = (arrays.take(name, "integer", (None,)) for name in ("train_idx", val, "test_idx"))
    return check_split(train_idx, val_idx, test_idx, size=size, rule=rule, where=str(arrays.path))


def check_split(train: Array, val: Array, test: Array, *, size: int, rule: str, where: str = "split") -> Split:
    """Sort the three parts and refuse ids out of range, in two parts, repeated, or an empty part.

    Raises:
        DataError: as said, naming the part and the id.
    """
    owner = np.full(size, -1)
    names = ("train", "val", "test")
    for part, (name, ids) in enumerate(zip(names, (train, val, test), strict=True)):
        if len(ids) == 0:
            raise DataError(f"{where}: the {name} part is empty")
        bad = (ids < 0) | (ids >= size)
        if bad.any():
            position = int(np.flatnonzero(bad)[0])
            raise DataError(
                f"{where}: index out of range: {name} id at position {position} is {ids[position]}, "
                f"expected 0 <= id < {size}"
            )
        taken = owner[ids]
        if (taken >= 0).any():
            position = int(np.flatnonzero(taken >= 0)[0])
            raise DataError(f"{where}: id {ids[position]} is in both the {names[taken[position]]} and {name} part")
        owner[ids] = part
        if int((owner == part).sum()) != len(ids):
            values, counts = np.unique(ids, return_counts=True)
            raise DataError(f"{where}: id {values[counts.argmax()]} is repeated in the {name} part")
    train_idx, val_idx, test_idx = (torch.from_numpy(np.sort(ids).astype(np.int64)) for ids in (train, val, test))
    return Split(train_idx, val_idx, test_idx, rule)
