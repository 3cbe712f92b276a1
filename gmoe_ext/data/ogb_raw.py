"""Read OGB's raw folders (NAME/raw/*.csv.gz, NAME/split/RULE/*) of node, graph and link data sets.

OGB's own loader unpickles its processed files and asks the network when imported; the raw folder needs neither.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import numpy as np

from ..errors import DataError
from .arrays import Array, Arrays, read_csv, sha256
from .molecules import MoleculeData, read_molecules
from .node import LinkData, NodeData, read_links, read_nodes
from .pickled import read_pt
from .splits import Rule

_HITS = {"ppa": 100, "collab": 50, "ddi": 20}


def is_raw_folder(folder: Path) -> bool:
    """Return whether ``folder`` holds OGB's raw edge list."""
    return (folder / "raw" / "edge.csv.gz").is_file()


def read(name: str, folder: Path, rule: Rule, metric: str | None = None) -> NodeData | MoleculeData | LinkData:
    """Read the raw folder of an OGB data set; the files present tell whether it is of nodes, graphs or links.

    Raises:
        DataError: a file is missing, damaged or inconsistent with the others.
    """
    raw = _RawFolder(folder)
    if raw.has("graph-label"):
        return _graphs(name, raw, rule, metric)
    if raw.has("node-label"):
        return _nodes(name, raw, rule)
    if sorted(folder.glob("split/*/valid.pt")):
        return _links(name, raw)
    raise DataError(
        f"data '{name}': {folder} is incomplete.\n"
        "  looked for: raw/graph-label.csv.gz (graphs), raw/node-label.csv.gz (nodes), split/*/valid.pt (links)"
    )


class _RawFolder(Arrays):
    """The arrays of one raw folder, read file by file under the names of NAME.npz."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, {}, {})
        self.folder = folder
        self.files: dict[str, str] = {}

    def has(self, file: str) -> bool:
        return (self.folder / "raw" / f"{file}.csv.gz").is_file()

    def add_csv(
        self, name: str, file: str, kind: str, *, flat: bool = False, missing: bool = False, folder: str = "raw"
    ) -> Array:
        path = self.folder / folder / f"{file}.csv.gz"
        table = read_csv(path, kind, missing)
        if flat and table.size and table.shape[1] != 1:
            self.fail(f"expected one column in {path.relative_to(self.folder).as_posix()}, got {table.shape[1]}")
        self.add(name, table.reshape(-1) if flat else table, path)
        return self.arrays[name]

    def add(self, name: str, array: Array, path: Path) -> None:
        self.arrays[name] = array
        self.files[name] = path.relative_to(self.folder).as_posix()
        if self.files[name] not in self.sha256:
            self.sha256[self.files[name]] = sha256(path)

    def add_edges(self, name: str) -> None:
        edges = self.add_csv(name, "edge", "integer")
        if edges.size and edges.shape[1] != 2:
            self.fail(f"expected two columns, source and target, in raw/edge.csv.gz, got {edges.shape[1]}")
        self.arrays[name] = edges.reshape(-1, 2).T  # an empty csv file has no columns
        if self.has("num-edge-list") and "num_bonds" not in self:
            counts = self.add_csv("num_edges", "num-edge-list", "integer", flat=True)
            self.use("num_edges")
            if counts.tolist() != (rows := [len(edges)]):
                self.fail(f"expected 'num_edges' {rows}, the rows of raw/edge.csv.gz, got {counts[:8].tolist()}")

    def add_num_nodes(self) -> int:
        counts = self.add_csv("num_nodes", "num-node-list", "integer", flat=True)
        if len(counts) != 1:
            self.fail(f"expected one graph, got 'num_nodes' of {len(counts)}")
        self.arrays["num_nodes"] = counts[0]
        return self.number("num_nodes")

    def all_remarks(self) -> tuple[str, ...]:
        """Return the remarks, and name the files of the raw folder that were not read."""
        files = (path.relative_to(self.folder).as_posix() for path in sorted((self.folder / "raw").glob("*.csv.gz")))
        if unread := [file for file in files if file not in self.files.values()]:
            self.remark(f"not read: {', '.join(unread)}")
        return super().all_remarks()

    def add_split(self) -> None:
        folder = self.split_folder().relative_to(self.folder).as_posix()
        for part in ("train", "valid", "test"):
            self.add_csv(f"{part}_idx", part, "integer", flat=True, folder=folder)

    def split_folder(self) -> Path:
        found = sorted(path for path in self.folder.glob("split/*") if path.is_dir())
        if len(found) != 1:
            self.fail(f"expected one folder under split, got {', '.join(path.name for path in found) or 'none'}")
        return found[0]

    def fail(self, message: str) -> NoReturn:
        """Raise DataError with the folder in front and the files of the arrays named in the message behind."""
        named = [f"'{name}' is {file}" for name, file in self.files.items() if f"'{name}'" in message]
        super().fail("; ".join([message, *named]))


def _graphs(name: str, raw: _RawFolder, rule: Rule, metric: str | None) -> MoleculeData:
    if not raw.has("node-feat") or not raw.has("edge-feat"):
        raw.fail("has no atom or bond categories; only OGB's molecules are read")
    raw.add_csv("node_feat", "node-feat", "integer")
    bond_feat = raw.add_csv("bond_feat", "edge-feat", "integer")
    if not bond_feat.size:
        raw.arrays["bond_feat"] = bond_feat.reshape(-1, 3)
    raw.add_csv("num_nodes", "num-node-list", "integer", flat=True)
    raw.add_csv("num_bonds", "num-edge-list", "integer", flat=True)
    raw.add_edges("bond_index")
    raw.add_csv("y", "graph-label", "real", missing=True)
    raw.add_split()
    return read_molecules(name, raw, rule, metric)


def _nodes(name: str, raw: _RawFolder, rule: Rule) -> NodeData:
    num_nodes = raw.add_num_nodes()
    raw.add_edges("edge_index")
    raw.add_split()
    raw.add_csv("y", "node-label", "real", missing=True)
    if raw.has("node-feat"):
        raw.add_csv("x", "node-feat", "real")
    elif raw.has("edge-feat"):
        edges = raw.indices("edge_index", num_nodes, (2, None))
        raw.add_csv("edge_feat", "edge-feat", "real")
        features = raw.take("edge_feat", "real", (edges.shape[1], None))
        raw.take("y", "real", (num_nodes, None))  # before `num_nodes` rows are made for it
        raw.arrays["x"] = _mean_of_edges(edges, features, num_nodes)
    else:
        raw.fail("has neither raw/node-feat.csv.gz nor raw/edge-feat.csv.gz")
    return read_nodes(name, raw, rule)


def _links(name: str, raw: _RawFolder) -> LinkData:
    raw.add_num_nodes()
    for part, keys in (("train", ("edge",)), ("valid", ("edge", "edge_neg")), ("test", ("edge", "edge_neg"))):
        path = raw.split_folder() / f"{part}.pt"
        if part == "train" and not path.is_file():  # the raw edge list holds the training edges
            raw.add_edges("train_edge")
            continue
        held = read_pt(path)
        for key in keys:
            if not isinstance(held.get(key), np.ndarray):
                raise DataError(f"{path}: expected an array '{key}', got {', '.join(held) or 'nothing'}")
            raw.add(f"{part}_{key}", held[key].T, path)
        if unread := sorted(set(held) - set(keys)):
            raw.remark(f"not read: {', '.join(unread)} of {path.name}")
    if raw.has("node-feat"):
        raw.add_csv("x", "node-feat", "real")
    raw.files.setdefault("train_edge (the same edges)", "raw/edge.csv.gz")
    k = next((k for suffix, k in _HITS.items() if name.endswith(suffix)), 20)
    return read_links(name, raw, f"hits@{k}")


def _mean_of_edges(edges: Array, edge_feat: Array, num_nodes: int) -> Array:
    # As in OGB's example for ogbn-proteins, whose nodes have no features of their own.
    ends = edges.reshape(-1)
    if len(ends) == 0:
        return np.zeros((num_nodes, edge_feat.shape[1]), dtype=np.float32)
    sums = [np.bincount(ends, np.tile(column, 2), minlength=num_nodes) for column in edge_feat.T]
    count = np.bincount(ends, minlength=num_nodes)
    means: Array = np.stack(sums, 1) / np.maximum(count, 1)[:, None]
    return means
