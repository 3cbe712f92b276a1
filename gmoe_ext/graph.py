"""Graph: a validated sparse adjacency with its degrees, normalisations and transpose cached. It knows no operator.

Row i of the compressed rows (CSR) holds what flows into node i: ``columns[offsets[i]:offsets[i + 1]]`` are the
sources j of the edges j -> i, in the order in which the caller gave them.

Shapes: N nodes, M edges, T edge types, S selected nodes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from ._graph_checks import check_ascending, check_distinct, check_edge_index, check_edge_type, check_weight

_INT32_LIMIT = 2**31


@dataclass(frozen=True, eq=False, repr=False, slots=True, weakref_slot=True)
class Graph:
    """A directed graph as compressed rows: row i lists the sources of the edges that end in node i.

    Make one with :meth:`from_edge_index`, which checks everything. The constructor itself trusts its arguments.
    A graph is immutable; what is derived from it (transpose, normalisations, ...) is computed once and kept.

    Attributes:
        num_nodes: N.
        offsets: int64 [N + 1]; row i is the range offsets[i]:offsets[i + 1] of the edges.
        columns: int32 or int64 [M]; source of each edge.
        weight: floating [M] or None, which means 1 for every edge.
        edge_type: [M] in the dtype of ``columns``, or None.
        num_edge_types: T, 0 without edge types.
        edge_id: int64 [M], position of each edge in the ``edge_index`` the graph was made from, or None.

    Example:
        >>> graph = Graph.from_edge_index(torch.tensor([[0, 1, 1], [1, 0, 2]]), num_nodes=3)
        >>> graph.degree().tolist()
        [1, 1, 1]
    """

    num_nodes: int
    offsets: Tensor
    columns: Tensor
    weight: Tensor | None = None
    edge_type: Tensor | None = None
    num_edge_types: int = 0
    edge_id: Tensor | None = None
    # What depends on the edges alone, shared by graphs that differ only in weight.
    _structure: dict[str, Any] = field(default_factory=dict, init=False)
    # What depends on the weights too.
    _derived: dict[Any, Any] = field(default_factory=dict, init=False)

    @classmethod
    def from_edge_index(
        cls,
        edge_index: Tensor,
        num_nodes: int,
        edge_weight: Tensor | None = None,
        edge_type: Tensor | None = None,
        num_edge_types: int | None = None,
    ) -> Graph:
        """Build a graph from a list of edges, checking everything.

        Args:
            edge_index: integers [2, M]; edge_index[0] = source j, edge_index[1] = destination i, as in PyG.
            num_nodes: N.
            edge_weight: floating [M], finite; None means 1.
            edge_type: integers [M] in [0, num_edge_types).
            num_edge_types: T; default is the largest edge type + 1.

        Returns:
            The graph on the device of ``edge_index``; duplicates and self loops are kept, edges of a row keep
            their order. Indices are int32 where nodes and edges number fewer than 2^31.

        Raises:
            GraphIndexError: a node id or edge type is out of its range; the first bad one is named.
            ValueError: wrong shapes, weights that are not finite, a negative ``num_nodes``.
            TypeError: wrong dtypes.
        """
        num_nodes = check_edge_index(edge_index, num_nodes)
        check_weight(edge_weight, edge_index)
        types = check_edge_type(edge_type, edge_index, num_edge_types)
        width = torch.int32 if max(num_nodes, edge_index.shape[1]) < _INT32_LIMIT else torch.int64
        rows, order = torch.sort(edge_index[1].to(width), stable=True)
        graph = cls(
            num_nodes,
            _row_offsets(rows, num_nodes),
            edge_index[0].to(width).index_select(0, order),
            _take(edge_weight, order),
            None if edge_type is None else edge_type.to(width).index_select(0, order),
            types,
            order,
        )
        return graph.prefill(rows=rows)

    @property
    def num_edges(self) -> int:
        """M."""
        return self.columns.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.columns.device

    @property
    def rows(self) -> Tensor:
        """Destination of each edge, [M], ascending, in the dtype of ``columns``."""
        if "rows" not in self._structure:
            ids = torch.arange(self.num_nodes, dtype=self.columns.dtype, device=self.device)
            self._structure["rows"] = torch.repeat_interleave(ids, self.degree(), output_size=self.num_edges)
        return cast(Tensor, self._structure["rows"])

    def degree(self) -> Tensor:
        """In-degree of each node, int64 [N]."""
        return self.offsets.diff()

    def edge_index(self) -> Tensor:
        """The edges as int64 [2, M], sources first, in the order of the rows."""
        return torch.stack([self.columns, self.rows]).long()

    def edges_by_type(self) -> tuple[Tensor, Tensor]:
        """Edges grouped by type: (type_offsets int64 [T + 1], order int64 [M]), stable within a type."""
        if self.edge_type is None:
            raise ValueError("Graph.edges_by_type: expected a graph with edge types, got none; pass edge_type")
        if "edges_by_type" not in self._structure:
            kinds, order = torch.sort(self.edge_type, stable=True)
            self._structure["edges_by_type"] = _row_offsets(kinds, self.num_edge_types), order
        return cast(tuple[Tensor, Tensor], self._structure["edges_by_type"])

    @property
    def transpose_order(self) -> Tensor:
        """Position in this graph of each edge of :meth:`transpose`, int64 [M]."""
        if "transpose_order" not in self._structure:
            order = self._structure.get("transposed_by")
            if order is None:
                self._structure["transpose_order"] = torch.sort(self.columns, stable=True).indices
            else:
                inverse = torch.empty_like(order)
                inverse[order] = torch.arange(self.num_edges, device=self.device)
                self._structure["transpose_order"] = inverse
        return cast(Tensor, self._structure["transpose_order"])

    def transpose(self) -> Graph:
        """The graph with every edge reversed, weights and types carried along; transposing twice gives self back.

        Raises:
            GraphIndexError: a column given to the trusted constructor is no node.
        """
        back = self._derived.get("transpose_of")
        original: Graph | None = None if back is None else back()
        return self._keep("transpose", self._make_transpose) if original is None else original

    def with_weight(self, weight: Tensor | None) -> Graph:
        """The same edges with other weights, [M] in the order of the rows; shares every cache of the structure."""
        if weight is not None and weight.shape != self.columns.shape:
            raise ValueError(
                f"Graph.with_weight: expected 'weight' of shape [{self.num_edges}], got {list(weight.shape)}"
            )
        graph = Graph(
            self.num_nodes, self.offsets, self.columns, weight, self.edge_type, self.num_edge_types, self.edge_id
        )
        object.__setattr__(graph, "_structure", self._structure)
        return graph

    def with_self_loops(self) -> Graph:
        """Add a self loop of weight 1 at the end of every row that has none.

        With edge types, the added loops have type T and the result has T + 1 types.
        """
        return self._keep("with_self_loops", self._make_self_loops)

    def gcn_norm(self, add_self_loops: bool = True) -> Graph:
        """Symmetric normalisation: w_ij becomes d_i^-1/2 w_ij d_j^-1/2, d_i the sum of the weights into i (GCN).

        Args:
            add_self_loops: first give every node without a self loop one of weight 1 (see :meth:`with_self_loops`).

        Returns:
            The weighted graph; a node whose weights do not sum to something positive has factor 0.
        """
        return self._keep(("gcn_norm", add_self_loops), lambda: self._make_gcn_norm(add_self_loops))

    def mean_norm(self, add_self_loops: bool = False) -> Graph:
        """Row normalisation: w_ij becomes w_ij / sum_j w_ij, which is 1 / in-degree without weights."""
        return self._keep(("mean_norm", add_self_loops), lambda: self._make_mean_norm(add_self_loops))

    def subgraph(self, nodes: Tensor) -> Graph:
        """The graph induced by ``nodes`` [S], distinct ids; node ``nodes[s]`` becomes node s.

        Edges of a row keep their order; ``edge_id`` still names positions in the original list of edges.
        """
        nodes = check_distinct(nodes, self.num_nodes).to(self.device)
        local = torch.full((self.num_nodes,), -1, dtype=self.columns.dtype, device=self.device)
        local[nodes] = torch.arange(len(nodes), dtype=self.columns.dtype, device=self.device)
        counts = self.offsets[nodes + 1] - self.offsets[nodes]
        edges = gather_ranges(self.offsets[nodes], counts)
        columns = local.index_select(0, self.columns.index_select(0, edges))
        taken = columns >= 0
        rows = torch.repeat_interleave(local[nodes], counts, output_size=len(edges))[taken]
        edges = edges[taken]
        graph = Graph(
            len(nodes),
            _row_offsets(rows, len(nodes)),
            columns[taken],
            _take(self.weight, edges),
            _take(self.edge_type, edges),
            self.num_edge_types,
            _take(self.edge_id, edges),
        )
        return graph.prefill(rows=rows)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Graph:
        """This graph on another device, its caches left behind; self when it is there already."""
        if torch.empty(0, device=device).device == self.device:
            return self

        def move(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.to(device, non_blocking=non_blocking)

        return Graph(
            self.num_nodes,
            self.offsets.to(device, non_blocking=non_blocking),
            self.columns.to(device, non_blocking=non_blocking),
            move(self.weight),
            move(self.edge_type),
            self.num_edge_types,
            move(self.edge_id),
        )

    def prefill(self, **cached: Any) -> Graph:
        """Hand in what is already known, so that it is not computed again; returns self. Trusted, for batching.

        Args:
            cached: any of ``rows``, ``transpose_order``, ``edges_by_type`` (as the members of that name return),
                ``transposed`` (offsets, columns and edge type of the transpose), ``gcn_norm``, ``mean_norm``,
                ``transpose`` (graphs, of the default arguments), ``looped_mean_norm`` (that of ``mean_norm`` with self
                loops added), ``transpose_of`` (whose transpose this graph is).
        """
        for name, value in cached.items():
            if name in ("rows", "transpose_order", "edges_by_type", "transposed"):
                self._structure[name] = value
            elif name in ("gcn_norm", "mean_norm"):
                self._derived[name, name == "gcn_norm"] = value
            elif name == "looped_mean_norm":
                self._derived["mean_norm", True] = value
            elif name == "transpose":
                self._derived[name] = value.prefill(transpose_of=self)
            elif name == "transpose_of":
                self._derived[name] = weakref.ref(value)
            else:
                raise TypeError(f"Graph.prefill: unknown cache '{name}'")
        return self

    def __repr__(self) -> str:
        parts = [f"{self.num_nodes:,} nodes", f"{self.num_edges:,} edges"]
        if self.weight is not None:
            parts.append(f"weight {str(self.weight.dtype).removeprefix('torch.')}")
        if self.edge_type is not None:
            parts.append(f"{self.num_edge_types:,} edge types")
        parts.append(str(self.columns.dtype).removeprefix("torch."))
        if self.device.type != "cpu":
            parts.append(str(self.device))
        return f"Graph({', '.join(parts)})"

    def __reduce__(self) -> tuple[type[Graph], tuple[Any, ...]]:
        fields = (self.offsets, self.columns, self.weight, self.edge_type, self.num_edge_types, self.edge_id)
        return Graph, (self.num_nodes, *fields)

    def _keep(self, key: Any, make: Callable[[], Graph]) -> Graph:
        # A weight that learns changes between calls and carries its own autograd graph: nothing of it can be kept.
        if self.weight is not None and self.weight.requires_grad:
            return make()
        if key not in self._derived:
            self._derived[key] = make()
        return cast(Graph, self._derived[key])

    def _make_transpose(self) -> Graph:
        order = self.transpose_order
        if "transposed" not in self._structure:
            columns = self.columns.index_select(0, order)
            # The trusted constructor has not looked.
            check_ascending("Graph.transpose", "columns", self.columns, columns, self.num_nodes)
            offsets = _row_offsets(columns, self.num_nodes)
            self._structure["transposed"] = offsets, self.rows.index_select(0, order), _take(self.edge_type, order)
        offsets, columns, edge_type = self._structure["transposed"]
        weight, edge_id = _take(self.weight, order), _take(self.edge_id, order)
        graph = Graph(self.num_nodes, offsets, columns, weight, edge_type, self.num_edge_types, edge_id)
        # Tensors only: this graph itself would close a reference cycle and delay the release of every batch.
        graph._structure.update(transposed_by=order, transposed=(self.offsets, self.columns, self.edge_type))
        return graph.prefill(transpose_of=self)

    def _make_self_loops(self) -> Graph:
        rows, columns = self.rows, self.columns
        missing = torch.ones(self.num_nodes, dtype=torch.bool, device=self.device)
        missing[columns[rows == columns].long()] = False
        shift = missing.cumsum(0)
        offsets = self.offsets.clone()
        offsets[1:] += shift
        # The loop goes last in its row, so an edge moves by the number of loops added in the rows before its own.
        old = torch.arange(self.num_edges, device=self.device) + (shift - missing.long()).index_select(0, rows)
        loops = missing.nonzero().squeeze(1)
        new = offsets[loops + 1] - 1
        total = self.num_edges + len(loops)

        def merge(values: Tensor, loop_values: Tensor | float) -> Tensor:
            # index_put without in-place writes keeps gradients to a learned weight.
            empty = torch.empty(total, dtype=values.dtype, device=self.device)
            fill = torch.as_tensor(loop_values, dtype=values.dtype, device=self.device)
            return empty.index_put((new,), fill).index_put((old,), values)

        typed = self.edge_type is not None
        graph = Graph(
            self.num_nodes,
            offsets,
            merge(columns, loops),
            None if self.weight is None else merge(self.weight, 1.0),
            None if self.edge_type is None else merge(self.edge_type, self.num_edge_types),
            self.num_edge_types + typed,
        )
        return graph.prefill(rows=merge(rows, loops))

    def _make_gcn_norm(self, add_self_loops: bool) -> Graph:
        base = self.with_self_loops() if add_self_loops else self
        total, weight = base._weight_sums()
        positive = total > 0
        factor = torch.where(positive, torch.where(positive, total, 1.0).rsqrt(), 0.0)
        scaled = factor.index_select(0, base.rows) * weight * factor.index_select(0, base.columns)
        return base.with_weight(scaled.to(weight.dtype))

    def _make_mean_norm(self, add_self_loops: bool) -> Graph:
        base = self.with_self_loops() if add_self_loops else self
        total, weight = base._weight_sums()
        nonzero = total != 0
        factor = torch.where(nonzero, 1.0 / torch.where(nonzero, total, 1.0), 0.0)
        return base.with_weight((factor.index_select(0, base.rows) * weight).to(weight.dtype))

    def _weight_sums(self) -> tuple[Tensor, Tensor]:
        # float64 sums: the rows of a hub can hold millions of weights.
        if self.weight is None:
            return self.degree().double(), torch.ones(self.num_edges, device=self.device)
        total = torch.zeros(self.num_nodes, dtype=torch.float64, device=self.device)
        if self.num_edges:
            total = torch.segment_reduce(self.weight.double(), "sum", offsets=self.offsets, axis=0, initial=0.0)
        return total, self.weight


def gather_ranges(starts: Tensor, counts: Tensor, total: int | None = None) -> Tensor:
    """Concatenate the ranges starts[r]:starts[r] + counts[r].

    Args:
        starts: int64 [R].
        counts: int64 [R], not negative.
        total: counts.sum() when the caller knows it, which spares a device a synchronisation.

    Returns:
        int64 [sum of counts].

    Example:
        >>> gather_ranges(torch.tensor([7, 0]), torch.tensor([2, 3])).tolist()
        [7, 8, 0, 1, 2]
    """
    if total is None:
        total = int(counts.sum())
    # A range starts where the ranges before it end; the difference to `starts` is what each of its items is moved by.
    moved = starts - counts.cumsum(0) + counts
    ids = torch.arange(total, dtype=starts.dtype, device=starts.device)
    return ids + torch.repeat_interleave(moved, counts, output_size=total)


def _take(values: Tensor | None, index: Tensor) -> Tensor | None:
    return None if values is None else values.index_select(0, index)


def _row_offsets(sorted_rows: Tensor, num_rows: int) -> Tensor:
    offsets = torch.zeros(num_rows + 1, dtype=torch.int64, device=sorted_rows.device)
    offsets[1:] = torch.bincount(sorted_rows, minlength=num_rows).cumsum(0)
    return offsets
