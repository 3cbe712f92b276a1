"""Make small data sets in the formats of the readers."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gmoe_ext.data.molecules import ATOM_DIMS, BOND_DIMS


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, ("1 + 1",)


def node_arrays(num_nodes: int = 40, num_classes: int = 2, seed: int = 0) -> dict[str, Any]:
    """Make the arrays of a NAME.npz: a random graph with 6 features, no split."""
    generator = np.random.default_rng(seed)
    pairs = np.unique(np.sort(generator.integers(num_nodes, size=(3 * num_nodes, 2))), axis=0)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    dense = generator.random((num_nodes, 6)).astype(np.float32) * (generator.random((num_nodes, 6)) < 0.5)
    rows, columns = np.nonzero(dense)
    return {
        "edge_index": pairs.T.astype(np.int32),
        "num_nodes": np.int64(num_nodes),
        "y": np.arange(num_nodes) % num_classes,
        "x_indptr": np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=num_nodes))]),
        "x_indices": columns.astype(np.int32),
        "x_data": dense[rows, columns],
        "x_shape": np.array(dense.shape),
    }


def molecule_arrays(num_graphs: int = 30, num_tasks: int = 1, seed: int = 0) -> dict[str, Any]:
    """Make the arrays of a NAME_graphs.npz: random trees, some with a ring or a single atom, labels 0, 1, NaN."""
    generator = np.random.default_rng(seed)
    atoms = generator.integers(1, 9, size=num_graphs)
    bonds: list[list[tuple[int, int]]] = []
    for size in atoms:
        tree = [(int(generator.integers(node)), node) for node in range(1, size)]
        bonds.append(tree + ([(0, int(size) - 1)] if size > 3 and (0, int(size) - 1) not in tree else []))
    flat = [bond for molecule in bonds for bond in molecule]
    y = generator.integers(0, 2, size=(num_graphs, num_tasks)).astype(np.float32)
    y[generator.random(y.shape) < 0.1] = np.nan
    return {
        "num_nodes": atoms.astype(np.int32),
        "num_bonds": np.array([len(molecule) for molecule in bonds], dtype=np.int32),
        "node_feat": generator.integers(0, ATOM_DIMS, size=(int(atoms.sum()), 9)).astype(np.int16),
        "bond_feat": generator.integers(0, BOND_DIMS, size=(len(flat), 3)).astype(np.int8),
        "bond_index": np.array(flat, dtype=np.int16).reshape(-1, 2).T,
        "y": y,
    }


def link_arrays() -> dict[str, Any]:
    """Make the arrays of a NAME.npz of links between 40 nodes."""
    edges = node_arrays()["edge_index"]
    return {
        "num_nodes": np.int64(40), "train_edge": edges[:, :80], "valid_edge": edges[:, 80:90],
        "test_edge": edges[:, 90:100], "valid_edge_neg": edges[:, :4], "test_edge_neg": edges[:, 4:9],
    }  # fmt: skip


def split_arrays(size: int, val_name: str = "valid_idx") -> dict[str, Any]:
    """Make a split of ``size`` items: two thirds, then a sixth each."""
    train, val = 2 * size // 3, 5 * size // 6
    ids = np.arange(size)
    return {"train_idx": ids[:train], val_name: ids[train:val], "test_idx": ids[val:]}


def write_npz(folder: Path, name: str, arrays: dict[str, Any]) -> Path:
    """Write NAME.npz and return its path."""
    path = folder / f"{name}.npz"
    np.savez(path, **arrays)
    return path


def write_csv(folder: Path, name: str, rows: Any) -> Path:
    """Write NAME.csv.gz without header, NaN as a blank cell, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.csv.gz"
    table = np.asarray(rows)
    table = table.reshape(len(table), -1)
    lines = [",".join("" if value != value else f"{value:.10g}" for value in row) for row in table.tolist()]
    with gzip.open(path, "wt") as stream:
        stream.write("".join(line + "\n" for line in lines))
    return path


def write_ogb_molecules(root: Path, name: str, num_graphs: int = 30, num_tasks: int = 2) -> dict[str, Any]:
    """Write the raw folder of a molecule data set as OGB ships it; returns the arrays."""
    arrays = molecule_arrays(num_graphs, num_tasks)
    raw = root / name / "raw"
    write_csv(raw, "edge", arrays["bond_index"].T)
    write_csv(raw, "num-node-list", arrays["num_nodes"])
    write_csv(raw, "num-edge-list", arrays["num_bonds"])
    write_csv(raw, "node-feat", arrays["node_feat"])
    write_csv(raw, "edge-feat", arrays["bond_feat"])
    write_csv(raw, "graph-label", arrays["y"])
    write_ogb_split(root, name, num_graphs, "scaffold")
    return arrays


def write_ogb_nodes(root: Path, name: str, num_nodes: int = 40) -> dict[str, Any]:
    """Write the raw folder of a node data set as OGB ships it; returns x, edge_index and y."""
    arrays = node_arrays(num_nodes)
    x = np.random.default_rng(0).random((num_nodes, 3)).astype(np.float32)
    raw = root / name / "raw"
    write_csv(raw, "edge", arrays["edge_index"].T)
    write_csv(raw, "num-node-list", [num_nodes])
    write_csv(raw, "num-edge-list", [arrays["edge_index"].shape[1]])
    write_csv(raw, "node-feat", x)
    write_csv(raw, "node-label", arrays["y"])
    write_ogb_split(root, name, num_nodes, "time")
    return {"x": x, "edge_index": arrays["edge_index"], "y": arrays["y"]}


def write_ogb_split(root: Path, name: str, size: int, rule: str) -> None:
    """Write split/RULE/{train,valid,test}.csv.gz."""
    for key, ids in split_arrays(size).items():
        write_csv(root / name / "split" / rule, key.removesuffix("_idx"), ids)


def write_ogb_links(root: Path, name: str, num_nodes: int = 40) -> dict[str, Any]:
    """Write the raw folder of a link data set as OGB ships it, with torch files of arrays and tensors as its split."""
    edges = node_arrays(num_nodes)["edge_index"].T.astype(np.int64)
    held = {
        "train": {"edge": edges[:80]},
        "valid": {"edge": edges[80:90], "edge_neg": torch.from_numpy(edges[:5])},
        "test": {"edge": edges[90:100], "edge_neg": edges[5:15]},
    }
    write_csv(root / name / "raw", "edge", edges[:80])
    write_csv(root / name / "raw", "num-node-list", [num_nodes])
    folder = root / name / "split" / "target"
    folder.mkdir(parents=True)
    for part, arrays in held.items():
        torch.save(arrays, folder / f"{part}.pt")
    return held
