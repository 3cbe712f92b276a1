"""MoleculeData: many small graphs as one disjoint union, from which batches are cut without a loop over graphs.

A batch is a handful of gathers from tables built once per data set (see `batching`): a training step neither sorts nor
normalises.

Shapes: G molecules, B of them in a batch, N atoms, M directed edges, P pairs of bond types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..graph import Graph
from ..indices import check_range
from ..ops import two_hop_graph
from .arrays import Array, Arrays, tell
from .batching import Cut, Table
from .labels import read_molecule_labels
from .splits import Rule, Split

ATOM_DIMS = (119, 5, 12, 12, 10, 6, 6, 2, 2)
BOND_DIMS = (5, 6, 2)
NUM_BOND_TYPES = 60
_MAX_PATHS = 1 << 28  # of two bonds: 2 GiB of edges with their types; real data sets have a few per atom


class MoleculeBatch(NamedTuple):
    """Some molecules as one disjoint graph.

    Attributes:
        node_feat: OGB's atom categories, int64 [N, 9].
        graph: bonds in both directions with bond types; its gcn_norm(), mean_norm() (with and without self loops) and
            transpose() are computed already.
        two_hop: edges between atoms two bonds apart, edge types in [0, P), or None.
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
        """Number of molecules B."""
        return self.sizes.shape[0]

    def to(self, device: torch.device | str) -> MoleculeBatch:
        """Return this batch on another device. To train there, move the MoleculeData once instead."""
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
        class_names: of classes, the ids in the data where those are not 0, 1, ...; else empty.
        remarks: what was not read, and what was read in a way that may surprise.
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
    class_names: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
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
    ) -> MoleculeData:
        """Build molecule data from NumPy arrays, checking everything.

        Args:
            name: of the data set.
            node_feat: atom categories of all molecules, integers [N, 9].
            num_nodes: atoms of each molecule, integers [G].
            bond_index: integers [2, bonds], atom ids local to the molecule, each bond in one or both directions; self
                loops are dropped.
            bond_feat: bond categories, integers [bonds, 3].
            num_bonds: bonds of each molecule, integers [G].
            y: labels [G, tasks] or [G], NaN = missing.
            split: the three parts.
            metric: by default inferred from the labels.

        Raises:
            DataError: a wrong shape or dtype, counts that do not add up, a category or atom id out of range.
        """
        given = {"node_feat": node_feat, "num_nodes": num_nodes, "bond_index": bond_index}
        given |= {"bond_feat": bond_feat, "num_bonds": num_bonds, "y": y}
        data = read_molecules(name, Arrays.of(f"data '{name}'", given), split, metric)
        tell(name, data.remarks)
        return data

    @property
    def num_graphs(self) -> int:
        """Number of molecules G."""
        return self.y.shape[0]

    @property
    def num_tasks(self) -> int:
        """Number of columns of ``y``."""
        return self.y.shape[1]

    @property
    def num_outputs(self) -> int:
        """Width of a model's output: number of classes for 'accuracy', else of tasks."""
        return int(self.y.max()) + 1 if self.metric == "accuracy" else self.num_tasks

    def batch(self, ids: Tensor | Array | Sequence[int], two_hop: bool = False) -> MoleculeBatch:
        """Cut the molecules ``ids`` [B] out of the union, in that order and possibly repeated.

        Args:
            ids: molecule ids, on the CPU, which avoids a wait for the device.
            two_hop: also cut the strict two-hop graph; it is computed for the whole data set on first use.

        Raises:
            GraphIndexError: an id is out of range.
            DataError: the two-hop graph would take more than 2 GiB.
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
        """Return the same molecules with another split; the tables of batches are shared."""
        train_idx, val_idx, test_idx, rule = split
        other = replace(self, train_idx=train_idx, val_idx=val_idx, test_idx=test_idx, split=rule)
        object.__setattr__(other, "_tables", self._tables)
        return other

    def to(self, device: torch.device | str) -> MoleculeData:
        """Return this data on another device, where batches are then cut; the split and ``node_offsets`` stay."""
        return replace(self, node_feat=self.node_feat.to(device), graph=self.graph.to(device), y=self.y.to(device))

    def summary(self) -> str:
        """Describe the data in one line: '2,039 molecules, 24.1 atoms and 26.0 bonds each, 1 task (rocauc), ...'."""
        parts = "/".join(f"{len(ids):,}" for ids in (self.train_idx, self.val_idx, self.test_idx))
        atoms, bonds = len(self.node_feat) / self.num_graphs, self.graph.num_edges / 2 / self.num_graphs
        rest = "; ".join((self.split, *self.remarks))
        each = f"{self.num_graphs:,} molecules, {atoms:.1f} atoms and {bonds:.1f} bonds each"
        return f"{each}, {self.num_tasks:,} task{'s' * (self.num_tasks > 1)} ({self.metric}), {parts} ({rest})"

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
            self._check_two_hop()
            listed = two_hop_graph(self.graph)
            assert listed.edge_type is not None
            # An embedding table has one row for each pair that occurs: a few dozen of 3,600.
            kinds, compact = torch.unique(listed.edge_type, return_inverse=True)
            pair_types = torch.stack([kinds // NUM_BOND_TYPES, kinds % NUM_BOND_TYPES], 1).long()
            edge_type = compact.to(listed.columns.dtype)
            graph = Graph(listed.num_nodes, listed.offsets, listed.columns, None, edge_type, len(kinds))
            self._tables["pairs"] = graph, pair_types
        pairs: tuple[Graph, Tensor] = self._tables["pairs"]
        return pairs

    def _check_two_hop(self) -> None:
        degrees = self.graph.degree()
        paths = int(degrees.square().sum())
        if paths > _MAX_PATHS:
            atom = int(degrees.argmax())
            molecule = int(torch.searchsorted(self.node_offsets, atom, right=True)) - 1
            raise DataError(
                f"data '{self.name}': the two-hop graph would have up to {paths:,} edges and take "
                f"{paths / 2**27:,.1f} GiB, expected at most {_MAX_PATHS / 2**27:,.1f} GiB; atom "
                f"{atom - int(self.node_offsets[molecule])} of molecule {molecule} has {int(degrees[atom]):,} bonds\n"
                "  fix: leave that molecule out, or use a model without hop-2 experts"
            )


def read_molecules(name: str, arrays: Arrays, split: Rule | Split, metric: str | None = None) -> MoleculeData:
    """Build molecule data from the arrays of NAME_graphs.npz (docs/guides/data.md), checking everything.

    Raises:
        DataError: an array is missing or bad, naming it.
        ConfigError: an option of the split is out of range, or does not apply.
    """
    node_feat = _read_categories(arrays, "node_feat", ATOM_DIMS)
    bond_feat = _read_categories(arrays, "bond_feat", BOND_DIMS)
    atoms = _read_counts(arrays, "num_nodes", "node_feat", len(node_feat), least=1)
    bonds = _read_counts(arrays, "num_bonds", "bond_feat", len(bond_feat), least=0)
    if len(atoms) != len(bonds):
        arrays.fail(f"'num_nodes' has {len(atoms)} molecules, 'num_bonds' has {len(bonds)}")
    labels = read_molecule_labels(arrays, len(atoms), metric)
    offsets = np.concatenate([[0], np.cumsum(atoms)])
    graph = _read_union(arrays, bond_feat, atoms, bonds, offsets)
    if isinstance(split, Rule):
        split = split.split(arrays, labels, "random")
    return MoleculeData(
        name, torch.from_numpy(node_feat), graph, torch.from_numpy(offsets), labels.y, *split[:3], labels.metric,
        split.rule, arrays.sha256, labels.class_names, arrays.all_remarks(),
    )  # fmt: skip


def _read_union(arrays: Arrays, bond_feat: Array, atoms: Array, bonds: Array, offsets: Array) -> Graph:
    molecule = np.repeat(np.arange(len(bonds)), bonds)
    bond_index = arrays.take("bond_index", "integer", (2, len(molecule)))
    bad = np.flatnonzero(((bond_index < 0) | (bond_index >= atoms[molecule])).any(0))
    if len(bad):
        owner = molecule[bad[0]]
        arrays.fail(
            f"index out of range: bond {bad[0]} of molecule {owner} joins atoms {bond_index[:, bad[0]].tolist()}, "
            f"expected 0 <= atom < {atoms[owner]}"
        )
    ends = bond_index.astype(np.int64) + offsets[molecule]
    a, b, c = bond_feat.T
    kinds = (a * BOND_DIMS[1] + b) * BOND_DIMS[2] + c
    kept = _first_of_each_bond(arrays, ends, kinds, int(offsets[-1]))
    # Each bond, then its reverse: the order of OGB's loader.
    edge_index = np.stack([ends[:, kept], ends[::-1, kept]], axis=2).reshape(2, -1)
    return Graph.from_edge_index(
        torch.from_numpy(edge_index),
        int(offsets[-1]),
        None,
        torch.from_numpy(np.repeat(kinds[kept], 2)),
        NUM_BOND_TYPES,
    )


def _first_of_each_bond(arrays: Arrays, ends: Array, kinds: Array, num_atoms: int) -> Array:
    """Find each bond once, in the order of the file, whether it gives one direction, both, or a bond twice."""
    low, high = ends.min(0), ends.max(0)
    _, first, inverse = np.unique(low * num_atoms + high, return_index=True, return_inverse=True)
    differs = np.flatnonzero((kinds != kinds[first][inverse]) & (low != high))
    if len(differs):
        earlier = first[inverse][differs[0]]
        arrays.fail(f"bonds {earlier} and {differs[0]} join the same atoms, but have different rows in 'bond_feat'")
    kept: Array = np.sort(first[low[first] != high[first]])
    return kept


def _read_counts(arrays: Arrays, name: str, counted: str, total: int, least: int) -> Array:
    counts = arrays.take(name, "integer", (None,)).astype(np.int64)
    bad = np.flatnonzero((counts < least) | (counts > total))  # so that the sum does not wrap around
    if len(bad) and counts[bad[0]] < least:
        arrays.fail(f"expected '{name}' >= {least}, got {counts[bad[0]]} at {bad[0]}")
    if len(bad):
        arrays.fail(f"'{name}' adds up to more than {counts[bad[0]]:,}, but '{counted}' has {total} rows")
    if counts.sum() != total:
        arrays.fail(f"'{name}' adds up to {counts.sum()}, but '{counted}' has {total} rows")
    return counts


def _read_categories(arrays: Arrays, name: str, dims: tuple[int, ...]) -> Array:
    values = arrays.take(name, "integer", (None, len(dims)))
    bad = (values < 0) | (values >= np.array(dims))
    if bad.any():
        row, column = (int(axis[0]) for axis in np.nonzero(bad))
        arrays.fail(
            f"category out of range: '{name}'[{row}, {column}] is {values[row, column]}, "
            f"expected 0 <= category < {dims[column]}"
        )
    return values.astype(np.int64)
