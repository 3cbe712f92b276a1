"""Readers of the npz formats: NAME.npz (nodes or links), NAME_graphs.npz (molecules), NAME_split*.npz.

docs/guides/data.md describes the arrays. Undirected edges are stored once; features are the rows of a CSR matrix.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..errors import DataError
from . import splits
from .files import Array, ArrayFile, read_npz, sha256
from .link import LinkData
from .molecules import MoleculeData
from .node import NodeData, check_classes, check_features, count_classes, undirected_graph
from .splits import Split


def read_node_or_link(
    name: str, path: Path, allow_partial: bool = False
) -> tuple[NodeData | LinkData, torch.Tensor | None]:
    """Read NAME.npz, of nodes or of links.

    Args:
        name: of the data set.
        path: the file.
        allow_partial: accept a file that has the features of some nodes only; the others are zero.

    Returns:
        The data, and the ids of unlabelled nodes if the file lists any. Without a split in the file, the parts of
        node data are empty (:data:`splits.NONE`).
    """
    arrays = read_npz(path)
    if "train_edge" in arrays:
        return _links(name, arrays), None
    return _nodes(name, arrays, allow_partial)


def read_molecules(name: str, path: Path, metric: str | None = None) -> MoleculeData:
    """Read NAME_graphs.npz.

    Args:
        name: of the data set.
        path: the file.
        metric: default follows from the labels.

    Returns:
        The data, with the file's own split ('official') or, without one, empty parts (:data:`splits.NONE`).
    """
    arrays = read_npz(path)
    atoms, bonds = (arrays.take(key, "integer", (None,)) for key in ("num_nodes", "num_bonds"))
    split = splits.from_arrays(arrays, len(atoms), "official") if "train_idx" in arrays else splits.NONE
    return MoleculeData.from_arrays(
        name,
        arrays.take("node_feat", "integer", (None, None)),
        atoms,
        arrays.take("bond_index", "integer", (2, None)),
        arrays.take("bond_feat", "integer", (None, None)),
        bonds,
        arrays.take("y", "real", (len(atoms), None)),
        split,
        metric,
        {path.name: sha256(path)},
    )


def read_split(root: Path, name: str, size: int, wanted: str | None = None) -> tuple[Split, Path] | None:
    """Read NAME_split.npz or NAME_split_RULE.npz, if there is one; the rule is named after the file.

    Raises:
        DataError: several files and none of them is ``wanted``, or a bad file.
    """
    found = {
        path.stem.removeprefix(f"{name}_split").lstrip("_") or "file": path for path in root.glob(f"{name}_split*.npz")
    }
    if not found or (wanted is not None and wanted not in found):
        return None
    if wanted is None and len(found) > 1:
        raise DataError(f"data '{name}': several split files: {', '.join(sorted(found))}; choose one with --data.split")
    rule = wanted or next(iter(found))
    return splits.from_arrays(read_npz(found[rule]), size, rule), found[rule]


def _nodes(name: str, arrays: ArrayFile, allow_partial: bool) -> tuple[NodeData, torch.Tensor | None]:
    num_nodes = arrays.number("num_nodes")
    y = check_classes(name, arrays.take("y", "real", (num_nodes,)), num_nodes)
    if "x_known_nodes" in arrays and not allow_partial:
        known = len(arrays.indices("x_known_nodes", num_nodes, (None,)))
        arrays.fail(
            f"features of {known:,} of {num_nodes:,} nodes only; the others are unknown, not zero. Results on it would "
            "mislead: use the complete data set, or pass allow_partial=True"
        )
    x = check_features(name, _features(arrays, num_nodes))
    class_names: tuple[str, ...] = ()
    if "class_names" in arrays:
        class_names = tuple(str(text) for text in arrays.take("class_names", "text", (None,)))
    edges = arrays.indices("edge_index", num_nodes, (2, None))
    graph = undirected_graph(name, edges, num_nodes)
    data = NodeData(
        name, x, graph, y, *splits.NONE[:3], count_classes(name, y, class_names), class_names,
        split=splits.NONE.rule, sha256={arrays.path.name: sha256(arrays.path)},
    )  # fmt: skip
    if "train_idx" in arrays:
        data = data.with_split(splits.from_arrays(arrays, num_nodes, "public"))
    if "unlabelled_nodes" not in arrays:
        return data, None
    return data, torch.from_numpy(arrays.indices("unlabelled_nodes", num_nodes, (None,)))


def _features(arrays: ArrayFile, num_nodes: int) -> Array:
    if "x" in arrays:
        return arrays.finite("x", (num_nodes, None))
    shape = arrays.take("x_shape", "integer", (2,))
    if shape[0] != num_nodes:
        arrays.fail(f"expected 'x_shape' [{num_nodes}, F], got {shape.tolist()}")
    offsets = arrays.take("x_indptr", "integer", (num_nodes + 1,)).astype(np.int64)
    values = arrays.finite("x_data", (None,))
    columns = arrays.indices("x_indices", int(shape[1]), (len(values),))
    counts = np.diff(offsets)
    if offsets[0] != 0 or offsets[-1] != len(values) or (counts < 0).any():
        arrays.fail(f"expected 'x_indptr' ascending from 0 to {len(values)}")
    x = np.zeros((num_nodes, int(shape[1])), dtype=np.float32)
    x[np.repeat(np.arange(num_nodes), counts), columns] = values
    return x


def _links(name: str, arrays: ArrayFile) -> LinkData:
    num_nodes = arrays.number("num_nodes")

    def pairs(key: str) -> torch.Tensor:
        return torch.from_numpy(arrays.indices(key, num_nodes, (2, None)))

    train = pairs("train_edge")
    has_features = "x" in arrays or "x_shape" in arrays
    return LinkData(
        name,
        undirected_graph(name, train.numpy(), num_nodes),
        check_features(name, _features(arrays, num_nodes)) if has_features else None,
        train,
        pairs("valid_edge"),
        pairs("test_edge"),
        pairs("valid_edge_neg"),
        pairs("test_edge_neg"),
        sha256={arrays.path.name: sha256(arrays.path)},
    )
