"""Data sets of one graph: NodeData, whose nodes are classified, and LinkData, whose missing edges are predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ..feature_rows import FeatureRows, Features
from ..graph import Graph
from .arrays import Array, Arrays, ascending_pairs, check_expansion, tell
from .labels import read_node_labels
from .splits import Rule, Split

# Share of values other than 0 up to which features are kept as FeatureRows. An RbM student trains 2.1 times as fast on
# sparse rows at 0.02, 1.2 times at 0.09 and 0.9 times at 0.17; an MLP 2.4 times at 0.17. Small matrices stay tensors.
SPARSE_BELOW = 0.1
_SMALL = 1 << 16


@dataclass(frozen=True, eq=False, repr=False)
class NodeData:
    """One graph, its node features, labels and split.

    Attributes:
        name: of the data set.
        x: node features, float32 [N, F]; FeatureRows where at most a tenth is not 0, as in bags of words.
        graph: undirected, both directions of every edge, no self loops, no weights.
        y: class ids int64 [N], -1 = unlabelled; for metric 'rocauc' 0/1/NaN labels float32 [N, tasks].
        train_idx, val_idx, test_idx: ids of labelled nodes, int64, ascending, disjoint.
        num_classes: C, the width of a model's output.
        class_names: where known, else empty; the class ids of the data where those are not 0, 1, ...
        metric: 'accuracy' or 'rocauc'.
        split: the rule the parts come from, such as 'public' or 'per_class'.
        sha256: digest of each file read, by file name.
        remarks: what was not read, and what was read in a way that may surprise.
    """

    name: str
    x: Features
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
    remarks: tuple[str, ...] = ()

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
            y: class ids, integers [N]; -1 or NaN = unlabelled.
            train_idx, val_idx, test_idx: node ids.
            class_names: one per class, or none.

        Raises:
            DataError: a wrong shape or dtype, NaN, an id out of range, or overlapping parts.
        """
        given = {"x": x, "edge_index": edge_index, "y": y}
        given |= {"train_idx": train_idx, "val_idx": val_idx, "test_idx": test_idx}
        arrays = Arrays.of(f"data '{name}'", given | ({"class_names": class_names} if len(class_names) else {}))
        arrays.arrays["num_nodes"] = np.array(len(np.atleast_1d(arrays.arrays["x"])))
        data = read_nodes(name, arrays, Rule("given"))
        tell(name, data.remarks)
        return data

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
        if isinstance(self.x, FeatureRows):
            return replace(self, x=self.x.row_normalized())
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
            f"{self.num_classes:,} {outputs}, {parts} ({'; '.join((self.split, *self.remarks))})"
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
        x: node features as in NodeData, or None.
        train_edge, val_edge, test_edge: positive pairs, int64 [2, E].
        val_edge_neg, test_edge_neg: negative pairs, int64 [2, E].
        metric: such as 'hits@20'.
        sha256: digest of each file read, by file name.
        remarks: what was not read, and what was read in a way that may surprise.
    """

    name: str
    graph: Graph
    x: Features | None
    train_edge: Tensor
    val_edge: Tensor
    test_edge: Tensor
    val_edge_neg: Tensor
    test_edge_neg: Tensor
    metric: str = "hits@20"
    sha256: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

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
        return "; ".join(
            (f"{self.num_nodes:,} nodes, {parts} edges to train/validate/test, {self.metric}", *self.remarks)
        )

    def __repr__(self) -> str:
        return f"LinkData({self.name}: {self.summary()})"


def read_nodes(name: str, arrays: Arrays, rule: Rule) -> NodeData:
    """Build node data from the arrays of NAME.npz (docs/guides/data.md), checking everything.

    Raises:
        DataError: an array is missing or bad, naming it.
        ConfigError: an option of the split is out of range, or does not apply.
    """
    num_nodes = arrays.number("num_nodes")
    labels = read_node_labels(arrays, num_nodes)
    x = read_features(arrays, num_nodes)
    edges = arrays.indices("edge_index", num_nodes, (2, None))
    graph = undirected_graph(edges, num_nodes)
    _remark_directions(arrays, edges, graph)
    arrays.use("orig_node_index")
    split = rule.split(arrays, labels, "per_class" if labels.metric == "accuracy" else "random")
    return NodeData(
        name, x, graph, labels.y, *split[:3], labels.outputs, labels.class_names, labels.metric, split.rule,
        arrays.sha256, arrays.all_remarks(),
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
    check_expansion(arrays.origin, f"a graph of {num_nodes:,} nodes", 8 * num_nodes, train.numpy().nbytes)
    x = read_features(arrays, num_nodes) if "x" in arrays or "x_shape" in arrays else None
    graph = undirected_graph(train.numpy(), num_nodes)
    return LinkData(name, graph, x, train, val, test, val_neg, test_neg, metric, arrays.sha256, arrays.all_remarks())


def read_features(arrays: Arrays, num_nodes: int) -> Features:
    """Read finite features as float32 [N, F]: ``x``, or the CSR matrix of ``x_indptr``, ``x_indices``, ``x_data``.

    Entries that a row of the CSR matrix has twice are added up, as SciPy does.
    """
    sparse = ("x_shape", "x_data", "x_indices", "x_indptr")
    if "x" in arrays:
        if given := [name for name in sparse if name in arrays]:
            arrays.fail(f"has both 'x' and {', '.join(given)}\n  fix: keep either the dense or the sparse features")
        dense = torch.from_numpy(arrays.finite("x", (num_nodes, None)))
        return FeatureRows.from_dense(dense) if _is_sparse(dense.shape, int(dense.count_nonzero())) else dense
    shape = arrays.take("x_shape", "integer", (2,))
    if shape[0] != num_nodes or shape[1] < 0:
        arrays.fail(f"expected 'x_shape' [{num_nodes}, F], got {shape.tolist()}")
    num_features = int(shape[1])
    values = arrays.finite("x_data", (None,))
    columns = arrays.indices("x_indices", num_features, (len(values),))
    rows = arrays.csr_rows("x_indptr", num_nodes, len(values))
    held = values.nbytes + columns.nbytes
    if _is_sparse((num_nodes, num_features), len(values)):
        check_expansion(arrays.origin, f"a weight for each of {num_features:,} columns of 'x'", 8 * num_features, held)
        offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=num_nodes))])
        csr = [torch.from_numpy(part) for part in (offsets, columns, values)]
        return FeatureRows.from_csr(csr[0], csr[1], csr[2], num_features)
    what = f"the dense matrix 'x' of shape [{num_nodes:,}, {num_features:,}]"
    check_expansion(arrays.origin, what, 4 * num_nodes * num_features, held)
    x = np.zeros((num_nodes, num_features), dtype=np.float32)
    np.add.at(x.reshape(-1), rows * num_features + columns, values)
    return torch.from_numpy(x)


def _is_sparse(shape: Sequence[int], num_values: int) -> bool:
    size = shape[0] * shape[1]
    return size >= _SMALL and num_values <= SPARSE_BELOW * size


def undirected_graph(edges: Array, num_nodes: int) -> Graph:
    """Build a graph of both directions of every edge, each once, without self loops; rows have ascending columns."""
    low, high = ascending_pairs(edges, num_nodes)
    both = np.stack([np.concatenate([low, high]), np.concatenate([high, low])])
    return Graph.from_edge_index(torch.from_numpy(both), num_nodes)


def _remark_directions(arrays: Arrays, edges: Array, graph: Graph) -> None:
    """Say that directions are dropped, unless the list is plainly undirected: both ways, or always from low to high."""
    source, target = edges
    if (source <= target).all() or (source >= target).all():
        return
    one_way = graph.num_edges - len(np.unique((source * graph.num_nodes + target)[source != target]))
    if one_way:
        arrays.remark(f"{one_way:,} edges that are given in one direction are used in both")
