"""Splits: which items train, validate and test. Given by a file or drawn from a seed, and always checked."""

from __future__ import annotations

import glob
import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from .arrays import Array, Arrays, read_npz
from .labels import Labels

_PARTS = ("train", "val", "test")
_FORMS = "idx|index|indices|ids?|nodes|masks?"
# train_idx, idx_train, train_mask, ... and the parts alone, as get_idx_split() of OGB names them.
_NAMED = re.compile(
    rf"(?:(?:{_FORMS})_)?(?P<part>train|val|test)(?:ing|id|idation)?(?:_(?:{_FORMS}))?|dev_(?:{_FORMS})", re.IGNORECASE
)


class Split(NamedTuple):
    """Item ids of the three parts, int64, ascending and disjoint; ``rule`` says where they come from."""

    train_idx: Tensor
    val_idx: Tensor
    test_idx: Tensor
    rule: str


_EMPTY = torch.zeros(0, dtype=torch.int64)
NONE = Split(_EMPTY, _EMPTY, _EMPTY, "none")
_PER_CLASS = (20, 30)


class Rule(NamedTuple):
    """How a data set gets its split.

    Attributes:
        own: what a split in the data's own arrays is called.
        name: 'auto', 'file', 'per_class', 'random' or the RULE of NAME_split_RULE.npz (:func:`gmoe_ext.data.load`).
        seed: of a drawn split; chooses one of several splits in a mask [N, S].
        train_per_class, val_per_class: nodes of each class in a 'per_class' split.
        beside: folder and name of the data set, to look for NAME_split*.npz.
    """

    own: str
    name: str = "auto"
    seed: int = 0
    train_per_class: int = _PER_CLASS[0]
    val_per_class: int = _PER_CLASS[1]
    beside: tuple[Path, str] | None = None

    def split(self, arrays: Arrays, labels: Labels, drawn: str) -> Split:
        """Take the split that stands in ``arrays`` or beside them, else draw one ('per_class' or 'random').

        Unlabelled items are in no part.

        Raises:
            DataError: the split is not found, partial, contradictory or bad, or cannot be drawn.
            ConfigError: an option is out of range, or does not apply.
        """
        size, counts = len(labels.labelled), (self.train_per_class, self.val_per_class)
        split = self._own(arrays, size) or self._beside(arrays, size)
        how = split.rule if split else drawn if self.name == "auto" else self.name
        if counts != _PER_CLASS and (split or how != "per_class"):
            raise ConfigError(
                f"{arrays.origin}: train_per_class and val_per_class do not apply to split '{how}'\n"
                "  fix: drop them, or draw a split with --data.split per_class"
            )
        return _labelled_only(arrays, split or self._draw(arrays, labels, how), labels.labelled)

    def _own(self, arrays: Arrays, size: int) -> Split | None:
        held = [name for name in arrays.arrays if part_of(name)]
        if not held or self.name not in ("auto", "file"):
            arrays.use(*held)  # the caller asked for another split
            return None
        if files := self._files():
            rules = ", ".join(sorted(files))
            arrays.remark(f"not read: {', '.join(path.name for path in files.values())} (for --data.split {rules})")
        return read(arrays, size, self.own, self.seed)

    def _beside(self, arrays: Arrays, size: int) -> Split | None:
        """Read NAME_split.npz or NAME_split_RULE.npz; the split is named after RULE."""
        if self.beside is None or self.name in ("per_class", "random"):
            return None
        folder, name = self.beside
        found, chosen = self._files(), self.name
        if self.name in ("auto", "file"):
            if len(found) > 1:
                names = ", ".join(sorted(found))
                raise DataError(f"data '{name}': found several splits: {names}\n  fix: choose one with --data.split")
            chosen = next(iter(found), "auto")
        if chosen in found:
            held = read_npz(found[chosen])
            split = read(held, size, chosen, self.seed)
            arrays.sha256 = {**arrays.sha256, **held.sha256}
            arrays.remarks += [f"{found[chosen].name}: {remark}" for remark in held.all_remarks()]
            return split
        if self.name == "auto":
            return None
        wanted = f"{name}_split{'*' if self.name == 'file' else '_' + self.name}.npz"
        raise DataError(f"data '{name}' has no split '{self.name}'\n  looked for: {folder / wanted}")

    def _files(self) -> dict[str, Path]:
        """The files NAME_split*.npz by their RULE, 'file' for NAME_split.npz."""
        if self.beside is None:
            return {}
        folder, name = self.beside
        paths = sorted(folder.glob(f"{glob.escape(name)}_split*.npz"))
        return {path.stem.removeprefix(f"{name}_split").lstrip("_") or "file": path for path in paths}

    def _draw(self, arrays: Arrays, labels: Labels, how: str) -> Split:
        if how == "per_class" and (labels.metric != "accuracy" or labels.y.ndim != 1):
            arrays.fail("split 'per_class' is for nodes with class ids\n  fix: use split 'random'")
        unlabelled = torch.from_numpy(np.flatnonzero(~labels.labelled))
        if how == "random":
            return random(len(labels.labelled), self.seed, exclude=unlabelled)
        return per_class(labels.y, self.train_per_class, self.val_per_class, self.seed, unlabelled)


def per_class(
    y: Tensor, train_per_class: int = 20, val_per_class: int = 30, seed: int = 0, exclude: Tensor | None = None
) -> Split:
    """Draw training, then validation nodes for every class; the rest are test nodes (RbM, section 4.1).

    Args:
        y: class ids, int64 [N].
        train_per_class, val_per_class: nodes of each class, at least 1.
        seed: of numpy.random.default_rng, at least 0.
        exclude: nodes that belong to no part, such as unlabelled ones.

    Raises:
        ConfigError: a number is out of range.
        DataError: a class has too few nodes.
    """
    if min(train_per_class, val_per_class) < 1:
        raise ConfigError(
            f"split per_class: expected train_per_class and val_per_class of at least 1, got {train_per_class} and "
            f"{val_per_class}"
        )
    labels, generator = y.numpy(force=True), _generator(seed)
    free = _free(len(labels), exclude)
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


def random(size: int, seed: int = 0, train: float = 0.8, val: float = 0.1, exclude: Tensor | None = None) -> Split:
    """Shuffle ``size`` items without those in ``exclude``; cut them into fractions ``train``, ``val`` and the rest."""
    items = np.flatnonzero(_free(size, exclude))
    order = items[_generator(seed).permutation(len(items))]
    first, second = int(train * len(items)), int((train + val) * len(items))
    return check_split(order[:first], order[first:second], order[second:], size=size, rule="random")


def read(arrays: Arrays, size: int, rule: str, seed: int = 0) -> Split:
    """Read and check the split that ``arrays`` hold as ids or masks, under any usual name (train_idx, idx_train, ...).

    A file may leave out the training part, which is empty then: it can be scored, not trained on.

    Raises:
        DataError: a part is missing, two arrays give it differently, or :func:`check_split` fails.
    """
    found: dict[str, dict[str, Array]] = defaultdict(dict)
    column = ""
    for name in sorted(arrays.arrays):
        part = part_of(name)
        if part:
            found[part][name], chosen = _read_part(arrays, name, size, seed)
            column = chosen or column
    for part, given in found.items():
        first, *others = given.values()
        if any(not np.array_equal(np.sort(first), np.sort(other)) for other in others):
            arrays.fail(f"the {part} part is given twice, and differently: {', '.join(given)}\n  fix: keep one of them")
    names = [name for part in _PARTS for name in found.get(part, ())]
    missing = [part for part in _PARTS if part not in found]
    if missing and missing != ["train"]:
        arrays.fail(
            f"has {', '.join(names)}, but no {' and no '.join(missing)} part\n"
            f"  fix: add '{missing[0]}_idx', or draw a split with --data.split random (or per_class)"
        )
    parts = [next(iter(found[part].values())) if part in found else np.zeros(0, np.int64) for part in _PARTS]
    if missing:
        arrays.remark(f"has {' and '.join(names)}, but no training part, so it cannot be trained on")
    origin, optional = arrays.origin, ("train",) if missing else ()
    return check_split(*parts, size=size, rule=rule + column, origin=origin, optional=optional)


def check_split(
    train: Array, val: Array, test: Array, *, size: int, rule: str, origin: object = "split",
    optional: tuple[str, ...] = (),
) -> Split:  # fmt: skip
    """Sort the three parts, and refuse an empty part and ids that are out of range, repeated or in two parts.

    Raises:
        DataError: naming the part and the id; a part in ``optional`` may be empty.
    """
    owner = np.full(size, -1)
    for part, (name, ids) in enumerate(zip(_PARTS, (train, val, test), strict=True)):
        if len(ids) == 0 and name not in optional:
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
            raise DataError(f"{origin}: id {twice} is in both the {_PARTS[owner[twice]]} and {name} part")
        owner[ids] = part
        if int((owner == part).sum()) != len(ids):
            values, counts = np.unique(ids, return_counts=True)
            raise DataError(f"{origin}: id {values[counts.argmax()]} is repeated in the {name} part")
    train_idx, val_idx, test_idx = (torch.from_numpy(np.sort(ids).astype(np.int64)) for ids in (train, val, test))
    return Split(train_idx, val_idx, test_idx, rule)


def part_of(name: str) -> str | None:
    """Tell which part of a split an array of this name gives, if any."""
    match = _NAMED.fullmatch(name)
    return None if match is None else (match["part"] or "val").lower()


def _read_part(arrays: Arrays, name: str, size: int, seed: int) -> tuple[Array, str]:
    """Read one part as ids; also return which of the splits [N, S] was chosen."""
    if "mask" not in name.lower():
        if name in arrays and arrays.arrays[name].dtype.kind == "b":
            arrays.fail(f"expected ids in '{name}', got a boolean mask\n  fix: name it '{part_of(name)}_mask'")
        return arrays.take(name, "integer", (None,)), ""
    mask = arrays.arrays[name]
    if mask.dtype.kind in "iu" and bool(((mask == 0) | (mask == 1)).all()):
        arrays.arrays[name] = mask.astype(bool)
    mask = arrays.take(name, "boolean", (size,), (size, None))
    if mask.ndim == 1:
        return np.flatnonzero(mask), ""
    if mask.shape[1] == 0:
        arrays.fail(f"expected '{name}' of shape [{size}] or [{size}, splits], got {list(mask.shape)}")
    column = seed % mask.shape[1]
    return np.flatnonzero(mask[:, column]), f" {column + 1} of {mask.shape[1]}" if mask.shape[1] > 1 else ""


def _labelled_only(arrays: Arrays, split: Split, labelled: Array) -> Split:
    parts = split[:3]
    kept = [ids[torch.from_numpy(labelled)[ids]] for ids in parts]
    dropped = sum(len(ids) for ids in parts) - sum(len(ids) for ids in kept)
    if dropped:
        arrays.remark(f"{dropped:,} unlabelled items are left out of the split '{split.rule}'")
    for name, before, ids in zip(_PARTS, parts, kept, strict=True):
        if len(before) and not len(ids):
            arrays.fail(f"no item of the {name} part has a label")
    return Split(kept[0], kept[1], kept[2], split.rule)


def _free(size: int, exclude: Tensor | None) -> Array:
    free = np.ones(size, dtype=bool)
    if exclude is not None:
        free[exclude.numpy(force=True)] = False
    return free


def _generator(seed: int) -> np.random.Generator:
    if seed < 0:
        raise ConfigError(f"split_seed: expected a number >= 0, got {seed}")
    return np.random.default_rng(seed)
