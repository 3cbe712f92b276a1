"""Data sets of one graph: NodeData, whose nodes are classified, and LinkData, whose missing edges are predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ..graph import Graph
from . import splits
from .arrays import Array, Arrays, ascending_pairs
from .splits import Split


@dataclass(frozen=True, eq=False, repr=False)
class NodeData:
    """One graph, its node features, labels and split.

    Attributes:
        name: of the data set.
        x: node features, float32 [N, F].
        graph: undirected, both directions of every edge, no self loops, no weights.
        y: class ids int64 [N]; for metric 'rocauc' 0/1/NaN labels float32 [N, tasks].
        train_idx, val_idx, test_idx: node ids, int64, ascending, disjoint.
        num_classes: C, the width of a model's output.
        class_names: where known, else empty.
        metric: 'accuracy' or 'rocauc'.
        split: the rule the parts come from, such as 'public' or 'per_class'.
        sha256: digest of each file read, by file name.
    """

    name: str
    x: Tensor
    graph: Graph
    y: Tensor
    train_idx: Tensor
    val_idx: Tensor
    test_idx: Tensor
    num_classes: int
    class_names: tuple[str, ...] = ()
    metric: str = "accuracy"
    split: str = "file"
    sha256: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_arrays(
        cls,
        name: str,
        x: Array,
        edge_index: Array,
        y: Array,
        train_idx: Array,
        val_idx: Array,
        test_idx: Array,
        class_names: Sequence[str] = (),
    ) -> NodeData:
        """Build node data from your own NumPy arrays, checking everything.

        Args:
            name: shown in tables and results.
            x: real [N, F].
            edge_index: integers [2, E], each undirected edge in one or both directions; self loops are dropped.
            y: class ids, integers [N].
            train_idx, val_idx, test_idx: node ids.
            class_names: one per class, or none.

        Raises:
            DataError: a wrong shape or dtype, NaN, an id out of range, or overlapping parts.
        """
        features = np.atleast_1d(np.asarray(x))
        given = {"x": features, "num_nodes": len(features), "edge_index": edge_index, "y": y}
        given |= {"train_idx": train_idx, "val_idx": val_idx, "test_idx": test_idx}
        if len(class_names):
            given["class_names"] = np.asarray(class_names, str)
        arrays = {key: np.asarray(value) for key, value in given.items()}
        return read_nodes(name, Arrays(f"data '{name}'", arrays), "given")

    @property
    def num_nodes(self) -> int:
        """Number of nodes N."""
        return self.x.shape[0]

    @property
    def num_features(self) -> int:
        """Number of features F."""
        return self.x.shape[1]

    def with_split(self, split: Split) -> NodeData:
        """Return the same graph with another split."""
        train_idx, val_idx, test_idx, rule = split
        return replace(self, train_idx=train_idx, val_idx=val_idx, test_idx=test_idx, split=rule)

    def row_normalized(self) -> NodeData:
        """Divide each node's features by the sum of their absolute values; zero rows stay zero."""
        return replace(self, x=self.x / self.x.abs().sum(1, keepdim=True).clamp_min(1e-12))

    def inductive(self, seed: int, rate: float = 0.2) -> InductiveView:
        """Hold out a fraction of the test nodes, with their edges, features and labels (RbM, section 4.1).

        Args:
            seed: of the draw (numpy.random.default_rng).
            rate: fraction of the test nodes to hold out, 0 < rate <= 1, rounded down to at least one node.
        """
        if not 0.0 < rate <= 1.0:
            raise ValueError(f"NodeData.inductive: expected 0 < rate <= 1, got {rate}")
        count = max(1, int(rate * len(self.test_idx)))
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(self.test_idx)))
        heldout = self.test_idx[order.to(self.test_idx.device)[:count]].sort().values
        seen = torch.ones(self.num_nodes, dtype=torch.bool, device=heldout.device)
        seen[heldout] = False
        nodes = seen.nonzero().squeeze(1)
        local = seen.cumsum(0) - 1
        train, val, test = (local[ids[seen[ids]]] for ids in (self.train_idx, self.val_idx, self.test_idx))
        observed = replace(self, x=self.x[nodes], graph=self.graph.subgraph(nodes), y=self.y[nodes])
        return InductiveView(observed.with_split(Split(train, val, test, self.split)), nodes, heldout)

    def to(self, device: torch.device | str) -> NodeData:
        """Return this data on another device."""
        names = ("x", "graph", "y", "train_idx", "val_idx", "test_idx")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def summary(self) -> str:
        """Describe the data in one line: '2,708 nodes, 5,278 edges, 1,433 features, 7 classes, ...'."""
        outputs = "classes" if self.metric == "accuracy" else "tasks"
        parts = "/".join(f"{len(ids):,}" for ids in (self.train_idx, self.val_idx, self.test_idx))
        return (
            f"{self.num_nodes:,} nodes, {self.graph.num_edges // 2:,} edges, {self.num_features:,} features, "
            f"{self.num_classes:,} {outputs}, {parts} ({self.split})"
        )

    def __repr__(self) -> str:
        return f"NodeData({self.name}: {self.summary()})"


@dataclass(frozen=True, eq=False)
class InductiveView:
    """The part of a graph that training may see when some test nodes arrive only later.

    Attributes:
        observed: the graph induced by the observed nodes, with local ids; its ``test_idx`` are observed test nodes.
        observed_nodes: global id of each observed node, int64 [No], ascending.
        heldout: global ids of the hidden test nodes, int64, ascending.
    """

    observed: NodeData
    observed_nodes: Tensor
    heldout: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class LinkData:
    """A training graph and the pairs to score.

    Attributes:
        name: of the data set.
        graph: the training edges, both directions, no self loops.
        x: node features float32 [N, F], or None.
        train_edge, val_edge, test_edge: positive pairs, int64 [2, E].
        val_edge_neg, test_edge_neg: negative pairs, int64 [2, E].
        metric: such as 'hits@20'.
        sha256: digest of each file read, by file name.
    """

    name: str
    graph: Graph
    x: Tensor | None
    train_edge: Tensor
    val_edge: Tensor
    test_edge: Tensor
    val_edge_neg: Tensor
    test_edge_neg: Tensor
    metric: str = "hits@20"
    sha256: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_nodes(self) -> int:
        """Number of nodes N."""
        return self.graph.num_nodes

    def to(self, device: torch.device | str) -> LinkData:
        """Return this data on another device."""
        names = ("graph", "train_edge", "val_edge", "test_edge", "val_edge_neg", "test_edge_neg")
        moved = {name: getattr(self, name).to(device) for name in names}
        return replace(self, x=None if self.x is None else self.x.to(device), **moved)

    def summary(self) -> str:
        """Describe the data in one line: nodes, edges of each part, metric."""
        parts = "/".join(f"{edges.shape[1]:,}" for edges in (self.train_edge, self.val_edge, self.test_edge))
        return f"{self.num_nodes:,} nodes, {parts} edges to train/validate/test, {self.metric}"

    def __repr__(self) -> str:
        return f"LinkData({self.name}: {self.summary()})"


def read_nodes(name: str, arrays: Arrays, rule: str) -> NodeData:
    """Build node data from the arrays of NAME.npz (docs/guides/data.md), checking everything.

    ``rule`` names the split in ``arrays``; without one the parts are empty (:data:`splits.NONE`).

    Raises:
        DataError: an array is missing or bad, naming it.
    """
    num_nodes = arrays.number("num_nodes")
    x = read_features(arrays, num_nodes)
    y = read_classes(arrays, num_nodes)
    graph = undirected_graph(arrays.indices("edge_index", num_nodes, (2, None)), num_nodes)
    class_names: tuple[str, ...] = ()
    if "class_names" in arrays:
        class_names = tuple(arrays.take("class_names", "text", (None,)).tolist())
    num_classes = count_classes(y)
    if class_names and num_classes > len(class_names):
        arrays.fail(f"label {num_classes - 1} has no name; 'class_names' has {len(class_names)}")
    split = splits.from_arrays(arrays, num_nodes, rule) if "train_idx" in arrays else splits.NONE
    return NodeData(
        name, x, graph, y, *split[:3], len(class_names) or num_classes, class_names,
        split=split.rule, sha256=arrays.sha256,
    )  # fmt: skip


def read_links(name: str, arrays: Arrays, metric: str = "hits@20") -> LinkData:
    """Build link data from the arrays of NAME.npz (docs/guides/data.md), checking everything.

    Raises:
        DataError: an array is missing or bad, naming it.
    """
    num_nodes = arrays.number("num_nodes")
    train, val, test, val_neg, test_neg = (
        torch.from_numpy(arrays.indices(f"{part}_edge{kind}", num_nodes, (2, None)))
        for part, kind in (("train", ""), ("valid", ""), ("test", ""), ("valid", "_neg"), ("test", "_neg"))
    )
    x = read_features(arrays, num_nodes) if "x" in arrays or "x_shape" in arrays else None
    graph = undirected_graph(train.numpy(), num_nodes)
    return LinkData(name, graph, x, train, val, test, val_neg, test_neg, metric, arrays.sha256)


def read_features(arrays: Arrays, num_nodes: int) -> Tensor:
    """Read finite features as float32 [N, F]: ``x``, or the CSR matrix of ``x_indptr``, ``x_indices``, ``x_data``."""
    if "x" in arrays:
        return torch.from_numpy(arrays.finite("x", (num_nodes, None)))
    shape = arrays.take("x_shape", "integer", (2,))
    if shape[0] != num_nodes:
        arrays.fail(f"expected 'x_shape' [{num_nodes}, F], got {shape.tolist()}")
    values = arrays.finite("x_data", (None,))
    columns = arrays.indices("x_indices", int(shape[1]), (len(values),))
    x = np.zeros((num_nodes, int(shape[1])), dtype=np.float32)
    x[arrays.csr_rows("x_indptr", num_nodes, len(values)), columns] = values
    return torch.from_numpy(x)


def read_classes(arrays: Arrays, num_nodes: int) -> Tensor:
    """Read the class ids ``y``, [N] or [N, 1], integers or whole floats >= 0, as int64 [N]."""
    y = arrays.take("y", "real", (num_nodes,), (num_nodes, 1)).reshape(-1)
    bad = np.flatnonzero(~(y >= 0) | (y != np.floor(y)))
    if len(bad):
        arrays.fail(
            f"expected class ids 0, 1, ... in 'y', got {y[bad[0]]} at node {bad[0]}; "
            "every node needs a label, missing ones (NaN) are not allowed here"
        )
    return torch.from_numpy(y.astype(np.int64))


def count_classes(y: Tensor) -> int:
    """Return the largest class id + 1."""
    return int(y.max()) + 1 if y.numel() else 0


def undirected_graph(edges: Array, num_nodes: int) -> Graph:
    """Build a graph of both directions of every edge, each once, without self loops; rows have ascending columns."""
    low, high = ascending_pairs(edges, num_nodes)
    both = np.stack([np.concatenate([low, high]), np.concatenate([high, low])])
    return Graph.from_edge_index(torch.from_numpy(both), num_nodes)
