"""Reader of OGB's raw folders (NAME/raw/*.csv.gz, NAME/split/RULE/*), of node, graph and link data sets.

OGB's own loader unpickles its processed files and asks the network when imported; the raw folder needs neither.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from . import metrics, splits
from .files import Array, ArrayFile, read_csv, sha256
from .link import LinkData
from .molecules import MoleculeData
from .node import NodeData, check_classes, check_features, count_classes, undirected_graph
from .splits import Split

_HITS = {"ppa": 100, "collab": 50, "ddi": 20}


def is_raw_folder(folder: Path) -> bool:
    """True where OGB's raw edge list lies."""
    return (folder / "raw" / "edge.csv.gz").is_file()


def read(name: str, folder: Path, metric: str | None = None) -> NodeData | MoleculeData | LinkData:
    """Read the raw folder of an OGB data set; the files say whether it is of nodes, graphs or links.

    Args:
        name: of the data set.
        folder: holds ``raw`` and ``split``.
        metric: of graph data; default follows from the labels.

    Raises:
        DataError: a file is missing, damaged or inconsistent with the others.
    """
    raw = _Folder(folder)
    if (folder / "raw" / "graph-label.csv.gz").is_file():
        return _graphs(name, raw, metric)
    if (folder / "raw" / "node-label.csv.gz").is_file():
        return _nodes(name, raw)
    if sorted(folder.glob("split/*/valid.pt")):
        return _links(name, raw)
    raise DataError(
        f"data '{name}': {folder} is incomplete.\n"
        "  looked for: raw/graph-label.csv.gz (graphs), raw/node-label.csv.gz (nodes), split/*/valid.pt (links)"
    )


class _Folder:
    """One raw folder; remembers the digest of every file it read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sha256: dict[str, str] = {}

    def csv(self, name: str, kind: str, missing: bool = False) -> Array:
        path = self.folder / "raw" / f"{name}.csv.gz"
        table = read_csv(path, kind, missing)
        self.note(path)
        return table

    def optional(self, name: str, kind: str) -> Array | None:
        return self.csv(name, kind) if (self.folder / "raw" / f"{name}.csv.gz").is_file() else None

    def counts(self, name: str) -> Array:
        return self.csv(name, "integer").reshape(-1)

    def split_folder(self) -> Path:
        found = sorted(path for path in self.folder.glob("split/*") if path.is_dir())
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise DataError(f"{self.folder}: expected one folder under split, got {names}")
        return found[0]

    def split(self, size: int) -> Split:
        folder = self.split_folder()
        parts = {}
        for part in ("train", "valid", "test"):
            path = folder / f"{part}.csv.gz"
            parts[f"{part}_idx"] = read_csv(path, "integer").reshape(-1)
            self.note(path)
        return splits.from_arrays(ArrayFile(folder, parts), size, "official")

    def note(self, path: Path) -> None:
        self.sha256[path.relative_to(self.folder).as_posix()] = sha256(path)


def _graphs(name: str, raw: _Folder, metric: str | None) -> MoleculeData:
    atoms, bonds = raw.counts("num-node-list"), raw.counts("num-edge-list")
    node_feat, bond_feat = raw.optional("node-feat", "integer"), raw.optional("edge-feat", "integer")
    if node_feat is None or bond_feat is None:
        raise DataError(f"data '{name}': {raw.folder} has no atom or bond categories; only OGB's molecules are read")
    # Without any bond the csv is empty and has lost its columns.
    bond_index = raw.csv("edge", "integer").reshape(-1, 2).T
    labels = raw.csv("graph-label", "real", missing=True)
    return MoleculeData.from_arrays(
        name, node_feat, atoms, bond_index, bond_feat.reshape(-1, 3) if not bond_feat.size else bond_feat, bonds,
        labels, raw.split(len(atoms)), metric, raw.sha256,
    )  # fmt: skip


def _nodes(name: str, raw: _Folder) -> NodeData:
    num_nodes = _single(name, raw)
    edges = raw.csv("edge", "integer").reshape(-1, 2).T
    graph = undirected_graph(name, edges, num_nodes)
    features = raw.optional("node-feat", "real")
    if features is None:
        edge_feat = raw.optional("edge-feat", "real")
        if edge_feat is None:
            raise DataError(f"data '{name}': {raw.folder} has neither raw/node-feat.csv.gz nor raw/edge-feat.csv.gz")
        features = _mean_of_edges(name, edges, edge_feat, num_nodes)
    x = check_features(name, features)
    if len(x) != num_nodes:
        raise DataError(f"data '{name}': raw/node-feat.csv.gz has {len(x)} rows, expected {num_nodes}")
    table = raw.csv("node-label", "real", missing=True)
    y: Tensor
    if table.shape[1] == 1:
        metric, y = "accuracy", check_classes(name, table, num_nodes)
        outputs = count_classes(name, y, ())
    else:
        metric, y, outputs = "rocauc", torch.from_numpy(table), table.shape[1]
        if len(table) != num_nodes:
            raise DataError(f"data '{name}': raw/node-label.csv.gz has {len(table)} rows, expected {num_nodes}")
        metrics.check_labels(name, y, metric)
    split = raw.split(num_nodes)
    return NodeData(name, x, graph, y, *split[:3], outputs, (), metric, split.rule, raw.sha256)


def _links(name: str, raw: _Folder) -> LinkData:
    num_nodes = _single(name, raw)
    folder = raw.split_folder()
    pairs: dict[str, Tensor] = {}
    for part, wanted in (("train", ("edge",)), ("valid", ("edge", "edge_neg")), ("test", ("edge", "edge_neg"))):
        path = folder / f"{part}.pt"
        if part == "train" and not path.is_file():
            # The raw edge list holds the training edges.
            held: dict[str, Any] = {"edge": raw.csv("edge", "integer")}
            path = raw.folder / "raw" / "edge.csv.gz"
        else:
            held = _read_pt(path)
            raw.note(path)
        for key in wanted:
            if key not in held:
                raise DataError(f"{path}: expected '{key}', got {', '.join(map(str, held)) or 'nothing'}")
            array = ArrayFile(path, {key: np.asarray(held[key]).T})
            pairs[f"{part}_{key}"] = torch.from_numpy(array.indices(key, num_nodes, (2, None)))
    features = raw.optional("node-feat", "real")
    graph = undirected_graph(name, pairs["train_edge"].numpy(), num_nodes)
    k = next((k for suffix, k in _HITS.items() if name.endswith(suffix)), 20)
    return LinkData(
        name, graph, None if features is None else check_features(name, features), pairs["train_edge"],
        pairs["valid_edge"], pairs["test_edge"], pairs["valid_edge_neg"], pairs["test_edge_neg"],
        f"hits@{k}", raw.sha256,
    )  # fmt: skip


def _single(name: str, raw: _Folder) -> int:
    counts = raw.counts("num-node-list")
    if len(counts) != 1:
        raise DataError(f"data '{name}': raw/num-node-list.csv.gz counts {len(counts)} graphs, expected 1")
    return int(counts[0])


def _mean_of_edges(name: str, edges: Array, edge_feat: Array, num_nodes: int) -> Array:
    # As OGB's example for ogbn-proteins, whose nodes have no features of their own.
    if len(edge_feat) != edges.shape[1]:
        raise DataError(f"data '{name}': raw/edge-feat.csv.gz has {len(edge_feat)} rows, expected {edges.shape[1]}")
    ends = edges.reshape(-1)
    if len(ends) == 0:
        return np.zeros((num_nodes, edge_feat.shape[1]), dtype=np.float32)
    sums = [np.bincount(ends, np.tile(column, 2), minlength=num_nodes) for column in edge_feat.T]
    count = np.bincount(ends, minlength=num_nodes)
    means: Array = np.stack(sums, 1) / np.maximum(count, 1)[:, None]
    return means


def _read_pt(path: Path) -> dict[str, Any]:
    # torch's restricted unpickler, which builds tensors only, with plain numeric NumPy arrays allowed besides.
    reconstruct = np.empty(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in ("i2", "i4", "i8", "f4", "f8")]
    allowed: list[Any] = [np.ndarray, np.dtype, *kinds]
    allowed += [(reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    try:
        with torch.serialization.safe_globals(allowed):
            held = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DataError(f"{path}: file not found") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{path}: damaged, or holds more than arrays ({reason}); fetch it again") from error
    if not isinstance(held, dict):
        raise DataError(f"{path}: expected a dictionary of arrays, got {type(held).__name__}")
    return held
