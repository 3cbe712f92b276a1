"""Graph: a validated sparse adjacency that caches its degrees, normalisations and transpose.

Row i of the compressed rows (CSR) holds what flows into node i: ``columns[offsets[i]:offsets[i + 1]]`` are the
sources j of the edges j -> i, in the order in which the caller gave them.

Shapes: N nodes, M edges, T edge types, S selected nodes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from .indices import (
    check_ascending,
    check_distinct,
    check_edge_index,
    check_edge_type,
    check_weight,
    gather_ranges,
    row_offsets,
)

_INT32_LIMIT = 2**31

# Graphs that are made from another one and kept with it: norms of the default arguments, and with the other choice of
# self loops.
_Derivation = Literal["transpose", "with_self_loops", "gcn_norm", "unlooped_gcn_norm", "mean_norm", "looped_mean_norm"]


@dataclass(slots=True)
class _Structure:
    """What depends on the edges alone, shared by graphs that differ only in weight; None until it is asked for."""

    rows: Tensor | None = None
    edges_by_type: tuple[Tensor, Tensor] | None = None
    transpose_order: Tensor | None = None
    transposed: tuple[Tensor, Tensor, Tensor | None] | None = None  # offsets, columns, edge type of the transpose
    transposed_by: Tensor | None = None  # the order that made this graph a transpose


@dataclass(frozen=True, eq=False, repr=False, slots=True, weakref_slot=True)
class Graph:
    """A directed graph as compressed rows: row i lists the sources of the edges that end in node i.

    ``from_edge_index`` makes one and checks everything; the constructor itself trusts its arguments. A graph is
    immutable, so whatever is derived from it (transpose, normalisations, ...) is computed once and kept.

    Attributes:
        num_nodes: N.
        offsets: int64 [N + 1]; row i is the range offsets[i]:offsets[i + 1] of the edges.
        columns: int32 or int64 [M]; source of each edge.
        weight: floating [M] or None, which means 1 for every edge.
        edge_type: [M] in the dtype of ``columns``, or None.
        num_edge_types: T, 0 without edge types.
        edge_id: int64 [M], position of each edge in the ``edge_index`` the graph was made from, or None.

    Examples:
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
    # A lambda, because torch.compile can construct a class that a function names, but not one that is a factory itself.
    _structure: _Structure = field(default_factory=lambda: _Structure(), init=False)
    # Depends on the weights, too.
    _derived: dict[_Derivation, Graph] = field(default_factory=dict, init=False)
    # The graph that this one is the transpose of: weak, because a reference cycle would delay the release of a batch.
    _original: weakref.ref[Graph] | None = field(default=None, init=False)

    @classmethod
    def from_edge_index(
        cls,
        edge_index: Tensor,
        num_nodes: int,
        edge_weight: Tensor | None = None,
        edge_type: Tensor | None = None,
        num_edge_types: int | None = None,
    ) -> Graph:
        """Build a graph from a list of edges and check everything.

        Args:
            edge_index: integers [2, M]; edge_index[0] = source j, edge_index[1] = destination i, as in PyG.
            num_nodes: N.
            edge_weight: floating [M], finite; None means 1.
            edge_type: integers [M] in [0, num_edge_types).
            num_edge_types: T; default is the largest edge type + 1.

        Returns:
            The graph on the device of ``edge_index``. Duplicates and self loops are kept, and the edges of a row stay
            in order. Indices are int32 if there are fewer than 2^31 nodes and edges.

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
            row_offsets(rows, num_nodes),
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
        """The device of all tensors."""
        return self.columns.device

    @property
    def rows(self) -> Tensor:
        """Destination of each edge, [M], ascending, in the dtype of ``columns``."""
        if self._structure.rows is None:
            ids = torch.arange(self.num_nodes, dtype=self.columns.dtype, device=self.device)
            self._structure.rows = torch.repeat_interleave(ids, self.degree(), output_size=self.num_edges)
        return self._structure.rows

    def degree(self) -> Tensor:
        """Return the in-degree of each node, int64 [N]."""
        return self.offsets.diff()

    def edge_index(self) -> Tensor:
        """Return the edges as int64 [2, M], sources first, in the order of the rows."""
        return torch.stack([self.columns, self.rows]).long()

    def edges_by_type(self) -> tuple[Tensor, Tensor]:
        """Group the edges by type: (type_offsets int64 [T + 1], order int64 [M]), stable within a type."""
        if self.edge_type is None:
            raise ValueError("Graph.edges_by_type: expected a graph with edge types, got none; pass edge_type")
        if self._structure.edges_by_type is None:
            kinds, order = torch.sort(self.edge_type, stable=True)
            self._structure.edges_by_type = row_offsets(kinds, self.num_edge_types), order
        return self._structure.edges_by_type

    @property
    def transpose_order(self) -> Tensor:
        """Position in this graph of each edge of ``transpose``, int64 [M]."""
        structure = self._structure
        if structure.transpose_order is None:
            if structure.transposed_by is None:
                structure.transpose_order = torch.sort(self.columns, stable=True).indices
            else:
                edges = torch.arange(self.num_edges, device=self.device)
                structure.transpose_order = torch.empty_like(edges).scatter_(0, structure.transposed_by, edges)
        return structure.transpose_order

    def transpose(self) -> Graph:
        """Reverse every edge, keeping its weight and type; transposing twice returns self.

        Raises:
            GraphIndexError: a column given to the trusted constructor is not a node.
        """
        original = None if self._original is None else self._original()
        return self._keep("transpose", self._make_transpose) if original is None else original

    def with_weight(self, weight: Tensor | None) -> Graph:
        """Give the same edges other weights, [M] in the order of the rows; caches of the structure are shared."""
        if weight is not None and weight.shape != self.columns.shape:
            raise ValueError(
                f"Graph.with_weight: expected 'weight' of shape [{self.num_edges}], got {list(weight.shape)}"
            )
        num_nodes, offsets, columns, _, *others = self._arguments()
        graph = Graph(num_nodes, offsets, columns, weight, *others)
        object.__setattr__(graph, "_structure", self._structure)
        return graph

    def with_self_loops(self) -> Graph:
        """Add a self loop of weight 1 at the end of every row that has none.

        With edge types, the added loops have type T and the result has T + 1 types.
        """
        return self._keep("with_self_loops", self._make_self_loops)

    def gcn_norm(self, add_self_loops: bool = True) -> Graph:
        """Normalise symmetrically: w_ij becomes d_i^-1/2 w_ij d_j^-1/2, d_i the sum of the weights into i (GCN).

        Args:
            add_self_loops: first add a self loop of weight 1 to every node without one (``with_self_loops``).

        Returns:
            The weighted graph; a node whose weights do not have a positive sum gets factor 0.
        """
        name: _Derivation = "gcn_norm" if add_self_loops else "unlooped_gcn_norm"
        return self._keep(name, lambda: self._make_norm(True, add_self_loops))

    def mean_norm(self, add_self_loops: bool = False) -> Graph:
        """Normalise rows: w_ij becomes w_ij / sum_j w_ij, which is 1 / in-degree without weights."""
        name: _Derivation = "looped_mean_norm" if add_self_loops else "mean_norm"
        return self._keep(name, lambda: self._make_norm(False, add_self_loops))

    def subgraph(self, nodes: Tensor) -> Graph:
        """Extract the graph induced by ``nodes`` [S], distinct ids; node ``nodes[s]`` becomes node s.

        Edges of a row stay in order; ``edge_id`` still refers to the original list of edges.
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
            row_offsets(rows, len(nodes)),
            columns[taken],
            _take(self.weight, edges),
            _take(self.edge_type, edges),
            self.num_edge_types,
            _take(self.edge_id, edges),
        )
        return graph.prefill(rows=rows)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Graph:
        """Move the graph to another device, without its caches; return self if it is there already."""
        if torch.empty(0, device=device).device == self.device:
            return self

        def move(value: Any) -> Any:
            return value.to(device, non_blocking=non_blocking) if isinstance(value, Tensor) else value

        return Graph(*map(move, self._arguments()))

    def prefill(
        self,
        *,
        rows: Tensor | None = None,
        transpose_order: Tensor | None = None,
        transposed: tuple[Tensor, Tensor, Tensor | None] | None = None,
        **derived: Graph,
    ) -> Graph:
        """Store results that the caller already knows, so that they are not computed again; return self.

        Trusts its arguments; meant for batching.

        Args:
            rows, transpose_order: as the properties return them.
            transposed: offsets, columns and edge type of the transpose.
            derived: graphs that are kept with this one, by name: transpose, gcn_norm, mean_norm, looped_mean_norm, ....
        """
        structure = self._structure
        structure.rows = structure.rows if rows is None else rows
        structure.transpose_order = structure.transpose_order if transpose_order is None else transpose_order
        structure.transposed = structure.transposed if transposed is None else transposed
        for name in derived:
            if name not in get_args(_Derivation):
                raise TypeError(f"Graph.prefill: expected one of {get_args(_Derivation)}, got '{name}'")
        self._derived.update(cast(dict[_Derivation, Graph], derived))
        if "transpose" in derived:
            object.__setattr__(derived["transpose"], "_original", weakref.ref(self))
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

    def _arguments(self) -> tuple[Any, ...]:
        rows = (self.num_nodes, self.offsets, self.columns, self.weight)
        return *rows, self.edge_type, self.num_edge_types, self.edge_id

    def __reduce__(self) -> tuple[type[Graph], tuple[Any, ...]]:
        return Graph, self._arguments()

    def _keep(self, name: _Derivation, make: Callable[[], Graph]) -> Graph:
        # A learned weight changes between calls and carries its own autograd graph, so nothing of it can be kept.
        if self.weight is not None and self.weight.requires_grad:
            return make()
        if name not in self._derived:
            self._derived[name] = make()
        return self._derived[name]

    def _make_transpose(self) -> Graph:
        order = self.transpose_order
        if self._structure.transposed is None:
            columns = self.columns.index_select(0, order)
            # The trusted constructor did not check the columns.
            check_ascending("Graph.transpose", "columns", self.columns, columns, self.num_nodes)
            offsets = row_offsets(columns, self.num_nodes)
            self._structure.transposed = offsets, self.rows.index_select(0, order), _take(self.edge_type, order)
        offsets, columns, edge_type = self._structure.transposed
        weight, edge_id = _take(self.weight, order), _take(self.edge_id, order)
        graph = Graph(self.num_nodes, offsets, columns, weight, edge_type, self.num_edge_types, edge_id)
        # Tensors only: a reference to this graph would close a cycle and delay the release of every batch.
        graph._structure.transposed_by = order
        graph._structure.transposed = self.offsets, self.columns, self.edge_type
        object.__setattr__(graph, "_original", weakref.ref(self))
        return graph

    def _make_self_loops(self) -> Graph:
        rows, columns = self.rows, self.columns
        missing = torch.ones(self.num_nodes, dtype=torch.bool, device=self.device)
        missing[columns[rows == columns].long()] = False
        shift = missing.cumsum(0)
        offsets = self.offsets.clone()
        offsets[1:] += shift
        # The loop goes last in its row, so an edge moves by the number of loops added to earlier rows.
        old = torch.arange(self.num_edges, device=self.device) + (shift - missing.long()).index_select(0, rows)
        loops = missing.nonzero().squeeze(1)
        new = offsets[loops + 1] - 1
        total = self.num_edges + len(loops)

        def merge(values: Tensor, loop_values: Tensor | float) -> Tensor:
            # index_put instead of in-place writes keeps gradients to a learned weight.
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

    def _make_norm(self, symmetric: bool, add_self_loops: bool) -> Graph:
        base = self.with_self_loops() if add_self_loops else self
        total, weight = base._weight_sums()
        usable = total > 0 if symmetric else total != 0
        divisor = torch.where(usable, total, 1.0)
        factor = torch.where(usable, divisor.rsqrt() if symmetric else 1.0 / divisor, 0.0)
        scaled = factor.index_select(0, base.rows) * weight
        if symmetric:
            scaled = scaled * factor.index_select(0, base.columns)
        return base.with_weight(scaled.to(weight.dtype))

    def _weight_sums(self) -> tuple[Tensor, Tensor]:
        # float64 sums: the row of a hub can hold millions of weights.
        if self.weight is None:
            return self.degree().double(), torch.ones(self.num_edges, device=self.device)
        total = torch.zeros(self.num_nodes, dtype=torch.float64, device=self.device)
        if self.num_edges:
            total = torch.segment_reduce(self.weight.double(), "sum", offsets=self.offsets, axis=0, initial=0.0)
        return total, self.weight


def _take(values: Tensor | None, index: Tensor) -> Tensor | None:
    return None if values is None else values.index_select(0, index)
