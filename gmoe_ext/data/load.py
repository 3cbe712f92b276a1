"""load: find a data set by its name and hand it out checked, with its split."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ..errors import DataError
from . import npz, ogb_raw, splits, synthetic
from .files import resolve_root, sha256
from .link import LinkData
from .molecules import MoleculeData
from .node import NodeData

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
    """Load the data set ``name`` from ``root``.

    Looked for, in this order: NAME.npz (nodes or links), NAME_graphs.npz (molecules), NAME/raw (OGB's raw folder).
    'communities' and 'molecules' are made, not read (:mod:`gmoe_ext.data.synthetic`).

    Args:
        name: of the data set; also its file's stem.
        root: folder; default is the environment variable GMOE_EXT_DATA, else ``data``.
        split: 'auto' takes the data file's own split, else NAME_split*.npz, else draws one: 'per_class' for nodes,
            'random' (80/10/10) for molecules. 'file' refuses to draw; 'per_class' and 'random' always draw; any
            other RULE reads NAME_split_RULE.npz.
        split_seed: of a drawn split.
        train_per_class, val_per_class: of a 'per_class' split.
        metric: 'accuracy', 'rocauc' or 'rmse'; default follows from the labels (:func:`metrics.infer`). Nodes have
            only the default.
        row_normalize: divide node features by their row's sum.
        allow_partial: accept a file with the features of some nodes only.

    Returns:
        NodeData, MoleculeData or LinkData, on the CPU.

    Raises:
        DataError: not found, damaged, or inconsistent; the message says what to do.

    Example:
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
        raise DataError(f"data '{name}' is scored by '{data.metric}', got metric '{metric}'; drop --data.metric")
    if split not in ("auto", "file") or data.split == splits.NONE.rule:
        chosen, path = _choose(data, folder, split, split_seed, (train_per_class, val_per_class), unlabelled)
        data = data.with_split(chosen)
        if path is not None:
            data = replace(data, sha256={**data.sha256, path.name: sha256(path)})
    if isinstance(data, NodeData) and row_normalize:
        data = data.row_normalized()
    return data


def _read(
    name: str, folder: Path, metric: str | None, allow_partial: bool
) -> tuple[NodeData | MoleculeData | LinkData, Tensor | None]:
    nodes, molecules = folder / f"{name}.npz", folder / f"{name}_graphs.npz"
    if nodes.is_file():
        return npz.read_node_or_link(name, nodes, allow_partial)
    if molecules.is_file():
        return npz.read_molecules(name, molecules, metric), None
    if ogb_raw.is_raw_folder(folder / name):
        return ogb_raw.read(name, folder / name, metric), None
    looked = ", ".join(str(path) for path in (nodes, molecules, folder / name / "raw"))
    raise DataError(
        f"data '{name}' not found under '{folder}'.\n"
        f"  looked for: {looked}\n"
        f"  mend: pass --data.root DIR, or run `python -m gmoe_ext.data get {name} --root {folder}`"
    )


def _choose(
    data: NodeData | MoleculeData,
    folder: Path,
    rule: str,
    seed: int,
    per_class: tuple[int, int],
    unlabelled: Tensor | None,
) -> tuple[splits.Split, Path | None]:
    size = data.num_nodes if isinstance(data, NodeData) else data.num_graphs
    if rule not in ("per_class", "random"):
        found = npz.read_split(folder, data.name, size, None if rule in ("auto", "file") else rule)
        if found is not None:
            return found
        if rule != "auto":
            wanted = f"{data.name}_split{'*' if rule == 'file' else '_' + rule}.npz"
            raise DataError(f"data '{data.name}' has no split '{rule}'.\n  looked for: {folder / wanted}")
    if rule == "random" or isinstance(data, MoleculeData):
        if rule == "per_class":
            raise DataError(f"data '{data.name}': split 'per_class' is for nodes; molecules take 'random'")
        return splits.random(size, seed), None
    return splits.per_class(data.y, *per_class, seed, unlabelled), None
