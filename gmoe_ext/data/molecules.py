"""MoleculeData: many small graphs as one disjoint union, and batches cut from it without a loop over graphs.

A batch is a handful of gathers from tables made once per data set (see `union`): a training step sorts nothing and
normalises nothing.

Shapes: G molecules, B of them in a batch, N atoms, M directed edges, P pairs of bond types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._graph_checks import check_range
from ..errors import DataError
from ..graph import Graph
from ..ops import two_hop_graph
from . import metrics
from .files import Array
from .splits import Split
from .union import Cut, Table

ATOM_DIMS = (119, 5, 12, 12, 10, 6, 6, 2, 2)
BOND_DIMS = (5, 6, 2)
NUM_BOND_TYPES = 60


class MoleculeBatch(NamedTuple):
    """Some molecules as one disjoint graph.

    Attributes:
        node_feat: OGB's atom categories, int64 [N, 9].
        graph: bonds in both directions with bond types, its gcn_norm(), mean_norm() (with self loops
            or without) and transpose() ready.
        two_hop: pairs of atoms two bonds apart, edge types in [0, P), or None.
        pair_types: bond types (first, second) of each edge type of ``two_hop``, int64 [P, 2], or None.
        sizes: atoms of each molecule, int64 [B].
        y: labels float32 [B, tasks], NaN = missing.
        ids: which molecules, int64 [B].
    """

    node_feat: Tensor
    graph: Graph
    two_hop: Graph | None
    pair_types: Tensor | None
    sizes: Tensor
    y: Tensor
    ids: Tensor

    @property
    def num_graphs(self) -> int:
        """B."""
        return self.sizes.shape[0]

    def to(self, device: torch.device | str) -> MoleculeBatch:
        """This batch on another device. To train there, move the MoleculeData once instead."""
        moved: list[Any] = [None if part is None else part.to(device) for part in self]
        return MoleculeBatch(*moved)


@dataclass(frozen=True, eq=False, repr=False)
class MoleculeData:
    """Molecules with labels: a disjoint union of their graphs.

    Attributes:
        name: of the data set.
        node_feat: OGB's atom categories, int64 [N, 9].
        graph: bonds in both directions; edge type = a * 12 + b * 2 + c of the bond categories (a, b, c), 60 types.
        node_offsets: int64 [G + 1], on the CPU; molecule g has the atoms node_offsets[g]:node_offsets[g + 1].
        y: float32 [G, tasks], NaN = missing.
        train_idx, val_idx, test_idx: molecule ids, int64, ascending, disjoint.
        metric: 'rocauc', 'rmse' or 'accuracy'.
        split: the rule the parts come from: 'official', 'reconstructed', 'random', ...
        sha256: digest of each file read, by file name.
    """

    name: str
    node_feat: Tensor
    graph: Graph
    node_offsets: Tensor
    y: Tensor
    train_idx: Tensor
    val_idx: Tensor
    test_idx: Tensor
    metric: str
    split: str = "official"
    sha256: Mapping[str, str] = field(default_factory=dict)
    _tables: dict[str, Any] = field(default_factory=dict, init=False)

    @classmethod
    def from_arrays(
        cls,
        name: str,
        node_feat: Array,
        num_nodes: Array,
        bond_index: Array,
        bond_feat: Array,
        num_bonds: Array,
        y: Array,
        split: Split,
        metric: str | None = None,
        sha256: Mapping[str, str] | None = None,
    ) -> MoleculeData:
        """Make molecule data from NumPy arrays, checking everything.

        Args:
            name: of the data set.
            node_feat: atom categories of all molecules, integers [N, 9].
            num_nodes: atoms of each molecule, integers [G].
            bond_index: each bond once, integers [2, bonds], atom ids local to the molecule.
            bond_feat: bond categories, integers [bonds, 3].
            num_bonds: bonds of each molecule, integers [G].
            y: labels [G, tasks] or [G], NaN = missing.
            split: the three parts.
            metric: default follows from the labels.
            sha256: digests of the files read.

        Raises:
            DataError: wrong shapes or dtypes, counts that do not add up, categories or atom ids out of range.
        """
        atoms = _check_counts(name, "num_nodes", num_nodes, "node_feat", len(node_feat), least=1)
        bonds = _check_counts(name, "num_bonds", num_bonds, "bond_feat", len(bond_feat), least=0)
        if len(atoms) != len(bonds):
            raise DataError(f"data '{name}': 'num_nodes' counts {len(atoms)} molecules, 'num_bonds' {len(bonds)}")
        _check_categories(name, "node_feat", node_feat, ATOM_DIMS)
        _check_categories(name, "bond_feat", bond_feat, BOND_DIMS)
        labels, metric = _check_labels(name, y, len(atoms), metric)
        offsets = np.concatenate([[0], np.cumsum(atoms)])
        graph = _union(name, bond_index, bond_feat, atoms, bonds, offsets)
        features = torch.from_numpy(node_feat.astype(np.int64))
        return cls(
            name, features, graph, torch.from_numpy(offsets), labels, *split[:3], metric, split.rule, sha256 or {}
        )

    @property
    def num_graphs(self) -> int:
        """G."""
        return self.y.shape[0]

    @property
    def num_tasks(self) -> int:
        """Columns of ``y``."""
        return self.y.shape[1]

    @property
    def num_outputs(self) -> int:
        """Width of a model's output: classes for 'accuracy', else tasks."""
        return int(self.y.max()) + 1 if self.metric == "accuracy" else self.num_tasks

    def batch(self, ids: Tensor | Array | Sequence[int], two_hop: bool = False) -> MoleculeBatch:
        """Cut the molecules ``ids`` [B], in that order and possibly repeated, out of the union.

        Args:
            ids: molecule ids; on the CPU, so that a device need not be waited for.
            two_hop: also cut the strict two-hop graph, which is listed for the whole data set on first use.

        Raises:
            GraphIndexError: an id out of range.
        """
        chosen = torch.as_tensor(ids, dtype=torch.int64, device="cpu")
        known = chosen.numpy()
        if known.size and (known.min() < 0 or known.max() >= self.num_graphs):
            check_range("MoleculeData.batch", "ids", chosen, self.num_graphs)
        tables = [self._table(which) for which in ("graph", "two_hop")[: 1 + two_hop]]
        cut = Cut.of(self.node_offsets, chosen, tables, self.node_feat.device)
        graph, *pairs = (table.cut(cut, edges) for table, edges in zip(tables, cut.edges, strict=True))
        return MoleculeBatch(
            self.node_feat.index_select(0, cut.nodes), graph, pairs[0] if pairs else None,
            self._two_hop()[1] if two_hop else None, cut.sizes, self.y.index_select(0, cut.ids), cut.ids,
        )  # fmt: skip

    def with_split(self, split: Split) -> MoleculeData:
        """The same molecules with other parts."""
        train_idx, val_idx, test_idx, rule = split
        other = replace(self, train_idx=train_idx, val_idx=val_idx, test_idx=test_idx, split=rule)
        object.__setattr__(other, "_tables", self._tables)
        return other

    def to(self, device: torch.device | str) -> MoleculeData:
        """This data on another device, where its batches are cut then; the split and ``node_offsets`` stay."""
        return replace(self, node_feat=self.node_feat.to(device), graph=self.graph.to(device), y=self.y.to(device))

    def summary(self) -> str:
        """One line: '2,039 molecules, 24.1 atoms and 26.0 bonds each, 1 task (rocauc), 1,631/204/204 (official)'."""
        parts = "/".join(f"{len(ids):,}" for ids in (self.train_idx, self.val_idx, self.test_idx))
        atoms, bonds = len(self.node_feat) / self.num_graphs, self.graph.num_edges / 2 / self.num_graphs
        tasks = f"{self.num_tasks:,} task{'s' if self.num_tasks > 1 else ''}"
        return (
            f"{self.num_graphs:,} molecules, {atoms:.1f} atoms and {bonds:.1f} bonds each, {tasks} ({self.metric}), "
            f"{parts} ({self.split})"
        )

    def __repr__(self) -> str:
        return f"MoleculeData({self.name}: {self.summary()})"

    def _table(self, which: str) -> Table:
        if which not in self._tables:
            source = self.graph if which == "graph" else self._two_hop()[0]
            self._tables[which] = Table(source, self.node_offsets)
        table: Table = self._tables[which]
        return table

    def _two_hop(self) -> tuple[Graph, Tensor]:
        if "pairs" not in self._tables:
            listed = two_hop_graph(self.graph)
            assert listed.edge_type is not None
            # Of 3,600 pairs of bond types a few dozen occur; a table of embeddings has one row for each of those.
            kinds, compact = torch.unique(listed.edge_type, return_inverse=True)
            pair_types = torch.stack([kinds // NUM_BOND_TYPES, kinds % NUM_BOND_TYPES], 1).long()
            edge_type = compact.to(listed.columns.dtype)
            graph = Graph(listed.num_nodes, listed.offsets, listed.columns, None, edge_type, len(kinds))
            self._tables["pairs"] = graph, pair_types
        pairs: tuple[Graph, Tensor] = self._tables["pairs"]
        return pairs


def _union(name: str, bond_index: Array, bond_feat: Array, atoms: Array, bonds: Array, offsets: Array) -> Graph:
    if bond_index.shape != (2, len(bond_feat)) or bond_index.dtype.kind not in "iu":
        raise DataError(
            f"data '{name}': expected 'bond_index' of integers [2, {len(bond_feat)}], "
            f"got {bond_index.dtype} {list(bond_index.shape)}"
        )
    molecule = np.repeat(np.arange(len(bonds)), bonds)
    bad = ((bond_index < 0) | (bond_index >= atoms[molecule])).any(0)
    if bad.any():
        bond = int(np.flatnonzero(bad)[0])
        raise DataError(
            f"data '{name}': index out of range: bond {bond} of molecule {molecule[bond]} joins atoms "
            f"{bond_index[:, bond].tolist()}, expected 0 <= atom < {atoms[molecule[bond]]}"
        )
    ends = bond_index.astype(np.int64) + offsets[molecule]
    # Each bond, then its reverse, as OGB's loader orders them.
    edge_index = np.stack([ends, ends[::-1]], axis=2).reshape(2, -1)
    a, b, c = bond_feat.astype(np.int64).T
    kinds = np.repeat((a * BOND_DIMS[1] + b) * BOND_DIMS[2] + c, 2)
    return Graph.from_edge_index(
        torch.from_numpy(edge_index), int(offsets[-1]), None, torch.from_numpy(kinds), NUM_BOND_TYPES
    )


def _check_counts(name: str, argument: str, counts: Array, counted: str, total: int, least: int) -> Array:
    if counts.ndim != 1 or counts.dtype.kind not in "iu":
        raise DataError(
            f"data '{name}': expected '{argument}' of integers [molecules], got {counts.dtype} {list(counts.shape)}"
        )
    counts = counts.astype(np.int64)
    if (counts < least).any():
        position = int(np.flatnonzero(counts < least)[0])
        raise DataError(f"data '{name}': expected '{argument}' >= {least}, got {counts[position]} at {position}")
    if counts.sum() != total:
        raise DataError(f"data '{name}': '{argument}' adds up to {counts.sum()}, but '{counted}' has {total} rows")
    return counts


def _check_categories(name: str, argument: str, values: Array, dims: tuple[int, ...]) -> None:
    if values.ndim != 2 or values.shape[1] != len(dims) or values.dtype.kind not in "iu":
        raise DataError(
            f"data '{name}': expected '{argument}' of integers [any, {len(dims)}], "
            f"got {values.dtype} {list(values.shape)}"
        )
    bad = (values < 0) | (values >= np.array(dims))
    if bad.any():
        row, column = (int(axis[0]) for axis in np.nonzero(bad))
        raise DataError(
            f"data '{name}': category out of range: '{argument}'[{row}, {column}] is {values[row, column]}, "
            f"expected 0 <= category < {dims[column]}"
        )


def _check_labels(name: str, y: Array, num_graphs: int, metric: str | None) -> tuple[Tensor, str]:
    if y.ndim == 1:
        y = y[:, None]
    if y.ndim != 2 or len(y) != num_graphs or y.shape[1] == 0 or y.dtype.kind not in "iuf":
        raise DataError(f"data '{name}': expected 'y' of labels [{num_graphs}, tasks], got {y.dtype} {list(y.shape)}")
    labels = torch.from_numpy(y.astype(np.float32))
    if bool(labels.isinf().any()):
        raise DataError(f"data '{name}': expected finite or missing labels in 'y', got infinity")
    if metric is None:
        metric = metrics.infer(labels)
    metrics.check_labels(name, labels, metric)
    return labels, metric
