"""NodeData: one attributed graph whose nodes are classified, and its inductive view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..graph import Graph
from .files import Array
from .splits import Split, check_split


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
        """Make node data of your own from NumPy arrays, checking everything.

        Args:
            name: shown in tables and results.
            x: real [N, F].
            edge_index: integers [2, E], each undirected edge in one or both directions; self loops are dropped.
            y: class ids, integers [N].
            train_idx, val_idx, test_idx: node ids.
            class_names: one per class, or none.

        Raises:
            DataError: wrong shapes or dtypes, NaN, ids out of range, overlapping parts.
        """
        features = check_features(name, x)
        labels = check_classes(name, y, len(features))
        graph = undirected_graph(name, edge_index, len(features))
        parts = [np.asarray(ids) for ids in (train_idx, val_idx, test_idx)]
        split = check_split(*parts, size=len(features), rule="given", where=f"data '{name}'")
        count = count_classes(name, labels, class_names)
        return cls(name, features, graph, labels, *split[:3], count, tuple(class_names), split=split.rule)

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.x.shape[0]

    @property
    def num_features(self) -> int:
        """F."""
        return self.x.shape[1]

    def with_split(self, split: Split) -> NodeData:
        """The same graph with other parts."""
        train_idx, val_idx, test_idx, rule = split
        return replace(self, train_idx=train_idx, val_idx=val_idx, test_idx=test_idx, split=rule)

    def row_normalized(self) -> NodeData:
        """Features divided by their row's sum of absolute values; zero rows stay zero."""
        return replace(self, x=self.x / self.x.abs().sum(1, keepdim=True).clamp_min(1e-12))

    def inductive(self, seed: int, rate: float = 0.2) -> InductiveView:
        """Hide a fraction of the test nodes, with their edges, features and labels (RbM, section 4.1).

        Args:
            seed: of the draw (numpy.random.default_rng).
            rate: fraction of the test nodes that are held out, 0 < rate <= 1, rounded down but at least one node.
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

        def relabel(ids: Tensor) -> Tensor:
            return local[ids[seen[ids]]]

        observed = replace(
            self,
            x=self.x[nodes],
            graph=self.graph.subgraph(nodes),
            y=self.y[nodes],
            train_idx=relabel(self.train_idx),
            val_idx=relabel(self.val_idx),
            test_idx=relabel(self.test_idx),
        )
        return InductiveView(observed, nodes, heldout)

    def to(self, device: torch.device | str) -> NodeData:
        """This data on another device."""
        names = ("x", "graph", "y", "train_idx", "val_idx", "test_idx")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def summary(self) -> str:
        """One line: '2,708 nodes, 5,278 edges, 1,433 features, 7 classes, 140/500/1,000 (public)'; edges undirected."""
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
    """What may be seen while training, when some test nodes arrive later.

    Attributes:
        observed: the graph induced by the observed nodes, with local ids; ``test_idx`` = observed test nodes.
        observed_nodes: global id of each observed node, int64 [No], ascending.
        heldout: global ids of the hidden test nodes, int64, ascending.
    """

    observed: NodeData
    observed_nodes: Tensor
    heldout: Tensor


def undirected_graph(name: str, edge_index: Any, num_nodes: int) -> Graph:
    """Both directions of every edge once, without self loops; rows have ascending columns.

    Raises:
        DataError: wrong shape or dtype, or a node id out of range.
    """
    edges = np.asarray(edge_index)
    if edges.ndim != 2 or edges.shape[0] != 2 or edges.dtype.kind not in "iu":
        raise DataError(
            f"data '{name}': expected 'edge_index' of integers [2, E], got {edges.dtype} {list(edges.shape)}"
        )
    bad = (edges < 0) | (edges >= num_nodes)
    if bad.any():
        position = int(np.flatnonzero(bad.reshape(-1))[0])
        raise DataError(
            f"data '{name}': index out of range: 'edge_index' at position {position} is "
            f"{edges.reshape(-1)[position]}, expected 0 <= index < {num_nodes}"
        )
    low, high = np.minimum(*edges).astype(np.int64), np.maximum(*edges).astype(np.int64)
    keys = np.unique(low[low != high] * num_nodes + high[low != high])
    low, high = np.divmod(keys, max(num_nodes, 1))
    both = np.stack([np.concatenate([low, high]), np.concatenate([high, low])])
    return Graph.from_edge_index(torch.from_numpy(both), num_nodes)


def check_features(name: str, x: Any) -> Tensor:
    """Real, finite [N, F] as a float32 tensor, else DataError."""
    values = np.asarray(x)
    if values.ndim != 2 or values.dtype.kind not in "iufb":
        raise DataError(f"data '{name}': expected 'x' of real numbers [N, F], got {values.dtype} {list(values.shape)}")
    values = np.ascontiguousarray(values, dtype=np.float32)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(1))[0])
        raise DataError(f"data '{name}': expected finite features in 'x', got NaN or infinity in row {row}")
    return torch.from_numpy(values)


def check_classes(name: str, y: Any, num_nodes: int) -> Tensor:
    """Class ids >= 0, [N] or [N, 1], integers or whole floats, as int64 [N], else DataError."""
    labels = np.asarray(y)
    if labels.shape not in ((num_nodes,), (num_nodes, 1)) or labels.dtype.kind not in "iuf":
        raise DataError(
            f"data '{name}': expected 'y' of class ids [{num_nodes}], got {labels.dtype} {list(labels.shape)}"
        )
    labels = labels.reshape(-1)
    bad = ~(labels >= 0) | (labels != np.floor(labels))
    if bad.any():
        position = int(np.flatnonzero(bad)[0])
        raise DataError(
            f"data '{name}': expected class ids 0, 1, ... in 'y', got {labels[position]} at node {position}; "
            "every node needs a label, missing ones (NaN) are not allowed here"
        )
    return torch.from_numpy(labels.astype(np.int64))


def count_classes(name: str, y: Tensor, class_names: Sequence[str]) -> int:
    """Number of classes: one per name, else the largest id + 1; DataError if a label has no name."""
    count = int(y.max()) + 1 if y.numel() else 0
    if not class_names:
        return count
    if count > len(class_names):
        raise DataError(f"data '{name}': label {count - 1} has no name; 'class_names' has {len(class_names)}")
    return len(class_names)
