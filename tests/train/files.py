"""Tiny data sets in the formats the readers know, for tests of the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_nodes(root: Path, name: str = "tiny", nodes: int = 60, features: int = 8, classes: int = 3) -> None:
    """A graph whose classes show in features and edges, with a split of its own."""
    rng = np.random.default_rng(0)
    y = np.arange(nodes) % classes
    x = rng.normal(size=(nodes, features)).astype(np.float32)
    x[np.arange(nodes), y] += 1.0
    u, v = np.triu_indices(nodes, 1)
    keep = rng.random(len(u)) < np.where(y[u] == y[v], 0.2, 0.02)
    rows, columns = np.nonzero(x)
    order = rng.permutation(nodes)
    root.mkdir(parents=True, exist_ok=True)
    np.savez(
        root / f"{name}.npz",
        edge_index=np.stack([u[keep], v[keep]]).astype(np.int32),
        num_nodes=np.int64(nodes),
        y=y.astype(np.int64),
        x_indptr=np.searchsorted(rows, np.arange(nodes + 1)).astype(np.int64),
        x_indices=columns.astype(np.int32),
        x_data=x[rows, columns],
        x_shape=np.array(x.shape, np.int64),
        train_idx=np.sort(order[:30]),
        val_idx=np.sort(order[30:45]),
        test_idx=np.sort(order[45:]),
    )


def write_molecules(root: Path, name: str = "tinymol", graphs: int = 40, tasks: int = 1, kind: str = "binary") -> None:
    """Chains of atoms with real or 0/1/missing labels, and a split of their own."""
    rng = np.random.default_rng(0)
    atoms = rng.integers(3, 8, graphs).astype(np.int32)
    bonds = atoms - 1
    total, edges = int(atoms.sum()), int(bonds.sum())
    starts = np.concatenate([np.arange(n - 1) for n in atoms])
    y = rng.normal(size=(graphs, tasks)).astype(np.float32)
    if kind == "binary":
        y = (y > 0).astype(np.float32)
        y[:4] = np.array([0, 1, 0, 1], np.float32)[:, None]
        y[rng.random(y.shape) < 0.1] = np.nan
        y[-8:] = np.arange(8)[:, None] % 2
    root.mkdir(parents=True, exist_ok=True)
    np.savez(
        root / f"{name}_graphs.npz",
        num_nodes=atoms,
        num_bonds=bonds,
        node_feat=np.stack([rng.integers(0, d, total) for d in (119, 5, 12, 12, 10, 6, 6, 2, 2)], 1).astype(np.int16),
        bond_feat=np.stack([rng.integers(0, d, edges) for d in (5, 6, 2)], 1).astype(np.int8),
        bond_index=np.stack([starts, starts + 1]).astype(np.int16),
        y=y,
        train_idx=np.arange(graphs - 8),
        valid_idx=np.arange(graphs - 8, graphs - 4),
        test_idx=np.arange(graphs - 4, graphs),
    )
