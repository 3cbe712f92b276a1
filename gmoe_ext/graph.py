"""Graph: a validated sparse adjacency that caches its degrees, normalisations and transpose.

Row i of the compressed rows (CSR) holds what flows into node i: ``columns[offsets[i]:offsets[i + 1]]`` are the
sources j of the edges j -> i, in the order in which the caller gave them.

Shapes: N nodes, M edges, T edge types, S selected nodes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, Literal, cast, get_args

import torch
import torch.utils._pytree
from torch import Tensor

from .errors import ArgumentTypeError
from .indices import (
    check_beside,
    check_distinct,
    check_edge_index,
    check_edge_type,
    check_rows,
    check_weight,
    gather_ranges,
    insert_loops,
    norm_weights,
    plain_mode,
    row_offsets,
)
from .structure import KEPT, Structure

_INT32_LIMIT = 2**31

# Graphs that are made from another one and kept with it: norms of the default arguments, and with the other choice of
# self loops.
_Derivation = Literal["transpose", "with_self_loops", "gcn_norm", "unlooped_gcn_norm", "mean_norm", "looped_mean_norm"]


class Graph:
    """A directed graph as compressed rows: row i lists the sources of the edges that end in node i.

    ``from_edge_index`` makes one and checks everything; the constructor itself trusts its arguments. A graph is
    immutable, so whatever is derived from it (transpose, normalisations, ...) is computed once and kept, the same
    values in whatever mode (``inference_mode``, autocast, default dtype) they are first asked for.

    Attributes:
        num_nodes: N.
        offsets: int64 [N + 1]; row i is the range offsets[i]:offsets[i + 1] of the edges.
        columns: int32 or int64 [M]; source of each edge.
        weight: floating [M] or None, which means 1 for every edge. A weight that requires a gradient is learnt: it is
            read anew at every use, and nothing that depends on it is kept.
        edge_type: [M] in the dtype of ``columns``, or None.
        num_edge_types: T, 0 without edge types.
        edge_id: int64 [M], position of each edge in the ``edge_index`` the graph was made from, or None.

    Examples:
        >>> graph = Graph.from_edge_index(torch.tensor([[0, 1, 1], [1, 0, 2]]), num_nodes=3)
        >>> graph.degree().tolist()
        [1, 1, 1]
    """

    def __init__(
        self,
        num_nodes: int,
        offsets: Tensor,
        columns: Tensor,
        weight: Tensor | None = None,
        edge_type: Tensor | None = None,
        num_edge_types: int = 0,
        edge_id: Tensor | None = None,
        weight_order: Tensor | None = None,
    ) -> None:
        self.num_nodes, self.offsets, self.columns = num_nodes, offsets, columns
        self.edge_type, self.num_edge_types, self.edge_id = edge_type, num_edge_types, edge_id
        # Of a learnt weight: where each edge's weight stands in it. Gathered anew for every step's backward pass.
        self._weight, self._weight_order = weight, weight_order
        self._structure = Structure(offsets, columns, edge_type, num_edge_types)
        # Depends on the weights, too.
        self._derived: dict[_Derivation, Graph] = {}
        # The graph that this one is the transpose of: weak, because a cycle would delay the release of a batch.
        self._original: weakref.ref[Graph] | None = None

    def __setattr__(self, name: str, value: object) -> None:
        if hasattr(self, name):
            raise AttributeError(f"Graph: '{name}' cannot be set, a graph does not change; fix: build another graph")
        object.__setattr__(self, name, value)

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
            num_nodes: N, an integer.
            edge_weight: floating [M], finite; None means 1. One that requires a gradient is not copied: the graph
                reads it anew in every step of training.
            edge_type: integers [M] in [0, num_edge_types).
            num_edge_types: T; default is the largest edge type + 1.

        Returns:
            The graph on the device of ``edge_index``. Duplicates and self loops are kept, and the edges of a row stay
            in order. Indices are int32 if there are fewer than 2^31 nodes and edges.

        Raises:
            GraphIndexError: a node id or edge type is out of its range; the first bad one is named.
            ValueError: wrong shapes, weights that are not finite, a negative number.
            TypeError: wrong dtypes, or a number that is not an integer.
        """
        num_nodes = check_edge_index(edge_index, num_nodes)
        check_weight(edge_weight, edge_index)
        types = check_edge_type(edge_type, edge_index, num_edge_types)
        learnt = edge_weight is not None and edge_weight.requires_grad
        width = torch.int32 if max(num_nodes, edge_index.shape[1]) < _INT32_LIMIT else torch.int64
        with plain_mode(edge_index.device):
            rows, order = torch.sort(edge_index[1].to(width), stable=True)
            graph = cls(
                num_nodes,
                row_offsets(rows, num_nodes),
                edge_index[0].to(width).index_select(0, order),
                edge_weight if learnt else _take(edge_weight, order),
                None if edge_type is None else edge_type.to(width).index_select(0, order),
                types,
                order,
                order if learnt else None,
            )
        return graph.prefill(rows=rows)

    @property
    def weight(self) -> Tensor | None:
        """Weight of each edge, or None."""
        if self._weight is None or self._weight_order is None:
            return self._weight
        return self._weight.to(self.device).index_select(0, self._weight_order)

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
        return self._structure.rows()

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
        return self._structure.edges_by_type()

    @property
    def transpose_order(self) -> Tensor:
        """Position in this graph of each edge of ``transpose``, int64 [M]."""
        return self._structure.transpose_order()

    def transpose(self) -> Graph:
        """Reverse every edge, keeping its weight and type; transposing twice returns self.

        Raises:
            GraphIndexError: a column given to the trusted constructor is not a node.
        """
        original = None if self._original is None else self._original()
        return self._keep("transpose", self._make_transpose) if original is None else original

    def with_weight(self, weight: Tensor | None) -> Graph:
        """Give the same edges other weights, [M] in the order of the rows; caches of the structure are shared.

        Integers and booleans become float32. Complex weights serve ``ops.aggregate`` alone.
        """
        if weight is not None:
            check_beside("Graph.with_weight", "weight", weight, self.columns)
            if not weight.is_floating_point() and not weight.is_complex():
                weight = weight.to(torch.float32)
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
        with plain_mode(self.device):
            nodes = check_distinct(nodes, self.num_nodes).to(self.device)
            local = torch.full((self.num_nodes,), -1, dtype=self.columns.dtype, device=self.device)
            local[nodes] = torch.arange(len(nodes), dtype=self.columns.dtype, device=self.device)
            counts = self.offsets[nodes + 1] - self.offsets[nodes]
            edges = gather_ranges(self.offsets[nodes], counts)
            columns = local.index_select(0, self.columns.index_select(0, edges))
            taken = columns >= 0
            rows = torch.repeat_interleave(local[nodes], counts, output_size=len(edges))[taken]
            edges = edges[taken]
            order = None
            if self._learnt:
                order = edges if self._weight_order is None else self._weight_order.index_select(0, edges)
            graph = Graph(
                len(nodes),
                row_offsets(rows, len(nodes)),
                columns[taken],
                _take(self._weight, edges) if order is None else self._weight,
                _take(self.edge_type, edges),
                self.num_edge_types,
                _take(self.edge_id, edges),
                order,
            )
        return graph.prefill(rows=rows)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Graph:
        """Move the graph to another device, without its caches; return self if it is there already."""
        if torch.empty(0, device=device).device == self.device:
            return self
        arguments = list(self._arguments())
        if self._learnt and self._weight_order is None:
            arguments[-1] = torch.arange(self.num_edges, device=self.device)

        def move(value: Any) -> Any:
            stays = not isinstance(value, Tensor) or (self._learnt and value is self._weight)
            return value if stays else value.to(device, non_blocking=non_blocking)

        with plain_mode(self.device):
            return Graph(*map(move, arguments))

    def prefill(self, **known: Any) -> Graph:
        """Store results that the caller already knows, so that they are not computed again; return self.

        Trusts its arguments; meant for batching.

        Args:
            known: ``rows`` and ``transpose_order`` as the properties return them; ``transposed``, the offsets, columns
                and edge type of the transpose; and the graphs ``transpose``, ``gcn_norm`` and ``mean_norm`` as the
                methods return them for their default arguments, ``looped_mean_norm`` with self loops added.
        """
        for name, value in known.items():
            if name in KEPT:
                self._structure.kept[name] = value
            elif name in get_args(_Derivation):
                self._derived[cast(_Derivation, name)] = value
            else:
                raise TypeError(f"Graph.prefill: expected one of {(*KEPT, *get_args(_Derivation))}, got '{name}'")
        if "transpose" in known:
            object.__setattr__(known["transpose"], "_original", weakref.ref(self))
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
        rows = (self.num_nodes, self.offsets, self.columns, self._weight)
        return *rows, self.edge_type, self.num_edge_types, self.edge_id, self._weight_order

    def __reduce__(self) -> tuple[Callable[..., Graph], tuple[Any, ...]]:
        return restore, self._arguments()

    @property
    def _learnt(self) -> bool:
        return self._weight is not None and (self._weight_order is not None or self._weight.requires_grad)

    def _keep(self, name: _Derivation, make: Callable[[], Graph]) -> Graph:
        if self._learnt:  # it changes between calls and carries its own autograd graph
            return make()
        if name not in self._derived:
            with plain_mode(self.device):
                made = make()
            if torch.compiler.is_compiling():  # cannot hand out a graph that it made
                return made
            self._derived[name] = made
        return self._derived[name]

    def _make_transpose(self) -> Graph:
        order = self.transpose_order
        offsets, columns, edge_type = self._structure.transposed()
        weight, edge_id = _take(self.weight, order), _take(self.edge_id, order)
        graph = Graph(self.num_nodes, offsets, columns, weight, edge_type, self.num_edge_types, edge_id)
        # Tensors only: a reference to this graph would close a cycle and delay the release of every batch.
        graph.prefill(transposed_by=order, transposed=(self.offsets, self.columns, self.edge_type))
        object.__setattr__(graph, "_original", weakref.ref(self))
        return graph

    def _make_self_loops(self) -> Graph:
        loops = insert_loops(self.offsets, self.rows, self.columns)
        weight = self.weight
        if loops.weight is not None:
            weight = torch.ones(self.num_edges, device=self.device, dtype=torch.float32) if weight is None else weight
        graph = Graph(
            self.num_nodes,
            loops.offsets,
            loops.merge(self.columns, loops.nodes),
            None if weight is None else loops.merge(weight, 1.0 if loops.weight is None else loops.weight),
            None if self.edge_type is None else loops.merge(self.edge_type, self.num_edge_types),
            self.num_edge_types + (self.edge_type is not None),
        )
        return graph.prefill(rows=loops.merge(self.rows, loops.nodes))

    def _make_norm(self, symmetric: bool, add_self_loops: bool) -> Graph:
        base = self.with_self_loops() if add_self_loops else self
        return base.with_weight(norm_weights(base.offsets, base.rows, base.columns, base.weight, symmetric))


def _take(values: Tensor | None, index: Tensor) -> Tensor | None:
    return None if values is None else values.index_select(0, index)


def expect_graph(name: str, graph: object, argument: str = "graph") -> None:
    """Raise ``TypeError`` unless a function was given a Graph."""
    if not isinstance(graph, Graph):
        raise ArgumentTypeError(
            f"{name}: expected '{argument}' to be a gmoe_ext.Graph, got {type(graph).__name__}; "
            "fix: Graph.from_edge_index(edge_index, num_nodes)"
        )


def restore(*arguments: Any) -> Graph:
    """Make a saved or sent graph again, and check what the file says."""
    check_rows(*arguments)
    return Graph(*arguments)


_KEYS = [
    torch.utils._pytree.GetAttrKey(name)
    for name in ("offsets", "columns", "weight", "edge_type", "edge_id", "weight_order")
]


def _flatten(graph: Graph) -> tuple[list[Tensor | None], int]:
    _, *tensors, edge_type, num_edge_types, edge_id, order = graph._arguments()
    return [*tensors, edge_type, edge_id, order], num_edge_types


def _unflatten(tensors: Iterable[Any], num_edge_types: int) -> Graph:
    offsets, columns, weight, edge_type, edge_id, order = tensors
    num_nodes = offsets.shape[0] - 1 if isinstance(offsets, Tensor) else 0  # others are placeholders
    return Graph(num_nodes, offsets, columns, weight, edge_type, num_edge_types, edge_id, order)


# torch.load(weights_only=True) and torch.export take graphs.
torch.serialization.add_safe_globals([restore])
torch.utils._pytree.register_pytree_node(
    Graph,
    _flatten,
    _unflatten,
    serialized_type_name="gmoe_ext.Graph",
    flatten_with_keys_fn=lambda graph: (list(zip(_KEYS, _flatten(graph)[0], strict=True)), graph.num_edge_types),
)
