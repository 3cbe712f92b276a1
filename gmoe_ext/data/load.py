"""Find a data set by its name, read it, and give it a split and a metric."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import DataError
from . import ogb_raw, splits, synthetic
from .arrays import Arrays, read_npz
from .molecules import MoleculeData, read_molecules
from .node import LinkData, NodeData, read_links, read_nodes

SYNTHETIC: dict[str, Callable[..., NodeData | MoleculeData]] = {
    "communities": synthetic.communities,
    "molecules": synthetic.molecules,
}


def load(
    name: str,
    root: str | os.PathLike[str] | None = None,
    *,
    split: str = "auto",
    split_seed: int = 0,
    train_per_class: int = 20,
    val_per_class: int = 30,
    metric: str | None = None,
    row_normalize: bool = False,
    allow_partial: bool = False,
) -> NodeData | MoleculeData | LinkData:
    """Load the data set ``name`` from the folder ``root``.

    Tries NAME.npz (nodes or links), then NAME_graphs.npz (molecules), then NAME/raw (OGB's raw folder). 'communities'
    and 'molecules' are generated, not read (:mod:`gmoe_ext.data.synthetic`).

    Args:
        name: of the data set; also the stem of its file.
        root: folder; default is the environment variable GMOE_EXT_DATA, else ``data``.
        split: 'auto' takes the data file's own split, else NAME_split*.npz, else draws one: 'per_class' for nodes,
            'random' (80/10/10) for molecules. 'file' never draws; 'per_class' and 'random' always draw; any other
            RULE reads NAME_split_RULE.npz.
        split_seed: of a drawn split.
        train_per_class, val_per_class: nodes of each class in a 'per_class' split.
        metric: 'accuracy', 'rocauc' or 'rmse'; by default inferred from the labels (:func:`metrics.infer`). Node data
            accept only the default.
        row_normalize: divide node features by their row's sum.
        allow_partial: accept a file that has the features of some nodes only; the others are zero.

    Returns:
        NodeData, MoleculeData or LinkData, on the CPU.

    Raises:
        DataError: the data set is not found, damaged or inconsistent; the message says what to do.

    Examples:
        >>> data = load("communities", split_seed=1)
        >>> data.num_classes
        8
    """
    if name in SYNTHETIC:
        made = SYNTHETIC[name](split_seed=split_seed)
        return made.row_normalized() if row_normalize and isinstance(made, NodeData) else made
    folder = resolve_root(root)
    data, unlabelled = _read(name, folder, metric, allow_partial)
    if isinstance(data, LinkData):
        return data
    if metric not in (None, data.metric):
        raise DataError(f"data '{name}' is scored by '{data.metric}', got metric '{metric}'\n  fix: drop --data.metric")
    if split not in ("auto", "file") or data.split == splits.NONE.rule:
        counts = (train_per_class, val_per_class) if isinstance(data, NodeData) else None
        chosen, digest = splits.choose(name, folder, split, data.y, split_seed, counts, unlabelled)
        data = replace(data.with_split(chosen), sha256={**data.sha256, **digest})
    return data.row_normalized() if row_normalize and isinstance(data, NodeData) else data


def resolve_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Return the data folder: the argument, else the environment variable GMOE_EXT_DATA, else ``data``."""
    return Path(root if root is not None else os.environ.get("GMOE_EXT_DATA") or "data")


def _read(
    name: str, folder: Path, metric: str | None, allow_partial: bool
) -> tuple[NodeData | MoleculeData | LinkData, Tensor | None]:
    """Read a data set with its own split, if it has one; also return the ids of nodes without a label, if listed."""
    single, graphs = folder / f"{name}.npz", folder / f"{name}_graphs.npz"
    if single.is_file():
        arrays = read_npz(single)
        if "train_edge" in arrays:
            return read_links(name, arrays), None
        return _read_node_file(name, arrays, allow_partial)
    if graphs.is_file():
        return read_molecules(name, read_npz(graphs), metric), None
    if ogb_raw.is_raw_folder(folder / name):
        return ogb_raw.read(name, folder / name, metric), None
    looked = ", ".join(str(path) for path in (single, graphs, folder / name / "raw"))
    raise DataError(
        f"data '{name}' not found under '{folder}'.\n"
        f"  looked for: {looked}\n"
        f"  fix: pass --data.root DIR, or run `python -m gmoe_ext.data get {name} --root {folder}`"
    )


def _read_node_file(name: str, arrays: Arrays, allow_partial: bool) -> tuple[NodeData, Tensor | None]:
    data = read_nodes(name, arrays, "public")
    if "x_known_nodes" in arrays and not allow_partial:
        known = len(arrays.indices("x_known_nodes", data.num_nodes, (None,)))
        arrays.fail(
            f"has the features of {known:,} of {data.num_nodes:,} nodes only; the others are unknown, not zero, so "
            "results would mislead\n  fix: use the complete data set, or allow this with --data.allow_partial true"
        )
    if "unlabelled_nodes" not in arrays:
        return data, None
    return data, torch.from_numpy(arrays.indices("unlabelled_nodes", data.num_nodes, (None,)))
