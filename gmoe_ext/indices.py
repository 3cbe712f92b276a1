"""Index tensors under ``gmoe_ext.Graph``: checks of its arguments, and arithmetic with offsets."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from .errors import ArgumentError, ArgumentTypeError, GraphIndexError

_OP = "Graph.from_edge_index"
_INT64 = 2**63
_INT_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_edge_index(edge_index: Tensor, num_nodes: int) -> int:
    """Check integers [2, M] in [0, num_nodes); return num_nodes as int."""
    if not isinstance(edge_index, Tensor):
        _refuse_type("edge_index", "an integer tensor of shape [2, M]", type(edge_index).__name__)
    if edge_index.dtype not in _INT_DTYPES:
        _refuse_type("edge_index", "an integer dtype", str(edge_index.dtype), "pass edge_index.long()")
    if edge_index.ndim != 2 or edge_index.shape[0] != 2:
        fix = "row 0 holds the sources, row 1 the destinations"
        _refuse("edge_index", "shape [2, M]", str(list(edge_index.shape)), fix)
    num_nodes = check_size("num_nodes", num_nodes)
    check_range(_OP, "edge_index", edge_index, num_nodes)
    return num_nodes


def check_size(argument: str, value: int, op: str = _OP) -> int:
    """Check an integer >= 0 and return it as int; 3.7, "3" and True are no sizes."""
    if isinstance(value, torch.SymInt):  # a size that a compiler leaves open
        return value
    try:
        size = operator.index(value)
    except TypeError:
        size = None
    if size is None or isinstance(value, bool):
        _refuse_type(argument, "an integer", repr(value), op=op)
    if size < 0:
        _refuse(argument, "a number >= 0", str(size), op=op)
    return size


def check_weight(weight: Tensor | None, edge_index: Tensor) -> None:
    """Check finite floating [M], or None."""
    if weight is None:
        return
    check_beside(_OP, "edge_weight", weight, edge_index[0])
    if not weight.is_floating_point():
        _refuse_type("edge_weight", "a floating dtype", str(weight.dtype), "pass edge_weight.float()")
    if torch.compiler.is_compiling():  # as in check_range
        return
    finite = weight.detach().isfinite()
    if not bool(finite.all()):
        position = int((~finite).nonzero()[0])
        _refuse("edge_weight", "finite values", f"{weight[position].item()} at position {position}")


def check_edge_type(edge_type: Tensor | None, edge_index: Tensor, num_edge_types: int | None) -> int:
    """Check integers [M] in [0, T), or None; return T, by default the largest type + 1."""
    if num_edge_types is not None:
        num_edge_types = check_size("num_edge_types", num_edge_types)
    if edge_type is None:
        if num_edge_types:
            _refuse("edge_type", f"shape [M] beside num_edge_types={num_edge_types}", "None")
        return 0
    check_beside(_OP, "edge_type", edge_type, edge_index[0])
    if edge_type.dtype not in _INT_DTYPES:
        _refuse_type("edge_type", "an integer dtype", str(edge_type.dtype), "pass edge_type.long()")
    if num_edge_types is None:
        num_edge_types = int(edge_type.max()) + 1 if edge_type.numel() else 0
    check_range(_OP, "edge_type", edge_type, num_edge_types)
    return num_edge_types


def check_distinct(nodes: Tensor, num_nodes: int) -> Tensor:
    """Check distinct integers [S] in [0, num_nodes); return them as int64."""
    if not isinstance(nodes, Tensor) or nodes.ndim != 1 or nodes.dtype not in _INT_DTYPES:
        _refuse_type("nodes", "an integer dtype and shape [S]", _kind(nodes), op="Graph.subgraph")
    check_range("Graph.subgraph", "nodes", nodes, num_nodes)
    nodes = nodes.long()
    counts = torch.bincount(nodes, minlength=num_nodes)
    if nodes.numel() and int(counts.max()) > 1:
        raise ArgumentError(
            f"Graph.subgraph: expected distinct ids in 'nodes', got {int(counts.argmax())} more than once; "
            "pass nodes.unique()"
        )
    return nodes


def check_range(op: str, argument: str, values: Tensor, bound: int) -> None:
    """Check 0 <= values < bound; raise GraphIndexError for the first bad element in flat order."""
    # A compiler cannot branch on the contents of a tensor; the operators check them again in every call.
    if torch.compiler.is_compiling() or values.numel() == 0:
        return
    low, high = values.aminmax()
    if int(low) < 0 or int(high) >= bound:
        flat = values.reshape(-1)
        position = int(((flat < 0) | (flat >= bound)).nonzero()[0])
        raise GraphIndexError.of(op, argument, position, int(flat[position]), bound)


def check_ascending(op: str, argument: str, values: Tensor, ascending: Tensor, bound: int) -> None:
    """Check ``values`` as `check_range` does, but read two elements only: the ends of the sorted ``ascending``."""
    if torch.compiler.is_compiling() or ascending.numel() == 0:  # as in check_range
        return
    if int(ascending[0]) < 0 or int(ascending[-1]) >= bound:
        check_range(op, argument, values, bound)


def gather_ranges(starts: Tensor, counts: Tensor, total: int | None = None) -> Tensor:
    """Concatenate the ranges starts[r]:starts[r] + counts[r].

    Args:
        starts: int64 [R].
        counts: int64 [R], non-negative.
        total: counts.sum() if the caller knows it, which avoids a device synchronisation.

    Returns:
        int64 [sum of counts].

    Examples:
        >>> gather_ranges(torch.tensor([7, 0]), torch.tensor([2, 3])).tolist()
        [7, 8, 0, 1, 2]
    """
    if total is None:
        total = int(counts.sum())
    # A range starts where the ranges before it end; its items shift by the difference from `starts`.
    moved = starts - counts.cumsum(0) + counts
    ids = torch.arange(total, dtype=starts.dtype, device=starts.device)
    return ids + torch.repeat_interleave(moved, counts, output_size=total)


def row_offsets(rows: Tensor, num_rows: int) -> Tensor:
    """Compute the offsets [num_rows + 1] of rows from the row of each edge."""
    offsets = torch.zeros(num_rows + 1, dtype=torch.int64, device=rows.device)
    if torch.compiler.is_compiling():  # the length of bincount's result depends on the values
        return offsets.index_add(0, rows.long() + 1, torch.ones_like(rows, dtype=torch.int64)).cumsum(0)
    offsets[1:] = torch.bincount(rows, minlength=num_rows).cumsum(0)
    return offsets


class Loops(NamedTuple):
    """Self loops to be added to rows, each at the end of its row.

    Attributes:
        nodes: int64 [L], the nodes that get one.
        offsets: of the rows with the loops.
        old: int64 [M], new position of each edge.
        new: int64 [L], position of each loop.
        weight: float32 [L], or None, which means 1 for every loop.
    """

    nodes: Tensor
    offsets: Tensor
    old: Tensor
    new: Tensor
    weight: Tensor | None

    def merge(self, values: Tensor, loop_values: Tensor | float) -> Tensor:
        """Put the values of the edges [M] and of the loops in their places."""
        # index_put instead of in-place writes keeps gradients to a learnt weight.
        empty = torch.empty(self.old.shape[0] + self.new.shape[0], dtype=values.dtype, device=values.device)
        fill = torch.as_tensor(loop_values, dtype=values.dtype, device=values.device)
        return empty.index_put((self.new,), fill).index_put((self.old,), values)


def insert_loops(offsets: Tensor, rows: Tensor, columns: Tensor) -> Loops:
    """Add a self loop to every row without one.

    A compiler must know the number of edges: under ``torch.compile`` every row gets one, of weight 0 where one was.
    """
    own = rows == columns
    if torch.compiler.is_compiling():
        missing = torch.zeros_like(offsets[1:]).index_add(0, rows, own.long()) == 0
        added, weight = torch.ones_like(missing), missing.to(torch.float32)
        nodes = torch.arange(missing.shape[0], device=missing.device)
    else:
        added, weight = torch.ones_like(offsets[1:], dtype=torch.bool), None
        added[columns[own].long()] = False
        nodes = added.nonzero().squeeze(1)
    shift = added.cumsum(0)
    offsets = offsets.clone()
    offsets[1:] += shift
    # The loop goes last in its row, so an edge moves by the number of loops added to earlier rows.
    old = torch.arange(columns.shape[0], device=columns.device) + (shift - added.long()).index_select(0, rows)
    return Loops(nodes, offsets, old, offsets[nodes + 1] - 1, weight)


def norm_weights(offsets: Tensor, rows: Tensor, columns: Tensor, weight: Tensor | None, symmetric: bool) -> Tensor:
    """Weights of the edges [M] divided by the sums over their rows; symmetric, by roots of row's and column's sums."""
    if weight is None:
        total = offsets.diff().double()
        weight = torch.ones(columns.shape[0], dtype=torch.float32, device=columns.device)
    elif weight.is_complex():
        raise ArgumentTypeError(f"Graph: expected 'weight' of a floating dtype for a norm, got {weight.dtype}")
    elif torch.compiler.is_compiling() or not columns.shape[0]:
        total = torch.zeros_like(offsets[1:], dtype=torch.float64).index_add(0, rows, weight.double())
    else:  # float64 sums: the row of a hub can hold millions of weights
        total = torch.segment_reduce(weight.double(), "sum", offsets=offsets, axis=0, initial=0.0)
    usable = total > 0 if symmetric else total != 0
    divisor = torch.where(usable, total, 1.0)
    factor = torch.where(usable, divisor.rsqrt() if symmetric else 1.0 / divisor, 0.0)
    scaled = factor.index_select(0, rows) * weight
    if symmetric:
        scaled = scaled * factor.index_select(0, columns)
    return scaled.to(weight.dtype)


@contextmanager
def plain_mode(device: torch.device) -> Iterator[None]:
    """Make what is kept for later calls free of the caller's mode: no inference tensors, no autocast."""
    if torch.compiler.is_compiling() or not (
        torch.is_inference_mode_enabled() or torch.is_autocast_enabled(device.type)
    ):
        yield
    else:
        with torch.inference_mode(False), torch.autocast(device.type, enabled=False):
            yield


def check_rows(
    num_nodes: int, offsets: Tensor, columns: Tensor, weight: Tensor | None, edge_type: Tensor | None,
    num_edge_types: int, edge_id: Tensor | None, weight_order: Tensor | None = None,
) -> None:  # fmt: skip
    """Check the arguments of a Graph that come from a file or another process."""
    op = "Graph, as saved"
    check_size("num_nodes", num_nodes, op)
    check_size("num_edge_types", num_edge_types, op)
    if not (isinstance(columns, Tensor) and columns.ndim == 1 and columns.dtype in (torch.int32, torch.int64)):
        _refuse_type("columns", "an int32 or int64 tensor [M]", _kind(columns), op=op)
    if not isinstance(offsets, Tensor) or offsets.dtype != torch.int64 or offsets.shape != (num_nodes + 1,):
        _refuse_type("offsets", f"an int64 tensor [{num_nodes + 1}]", _kind(offsets), op=op)
    if int(offsets[0]) != 0 or int(offsets[-1]) != len(columns) or bool((offsets.diff() < 0).any()):
        _refuse("offsets", f"values that rise from 0 to {len(columns)}", "others", op=op)
    check_range(op, "columns", columns, num_nodes)
    for name, values, bound in (
        ("edge_type", edge_type, num_edge_types),
        ("edge_id", edge_id, _INT64),
        ("weight_order", weight_order, 0 if weight is None else len(weight)),
    ):
        if values is None:
            continue
        check_beside(op, name, values, columns)
        if values.dtype not in (torch.int32, torch.int64):
            _refuse_type(name, "an int32 or int64 dtype", str(values.dtype), op=op)
        check_range(op, name, values, bound)
    if weight is not None:
        if weight_order is None:
            check_beside(op, "weight", weight, columns)
        if not weight.is_floating_point() and not weight.is_complex():
            _refuse_type("weight", "a floating dtype", str(weight.dtype), op=op)


def check_beside(op: str, argument: str, values: Tensor, edges: Tensor) -> None:
    """Check a tensor [M] on the device of a tensor [M] of the edges."""
    if not isinstance(values, Tensor):
        _refuse_type(argument, "a tensor of shape [M]", type(values).__name__, op=op)
    expected = list(edges.shape)
    if list(values.shape) != expected:
        _refuse(argument, f"shape {expected}, one for each edge", str(list(values.shape)), op=op)
    if values.device != edges.device:
        _refuse(argument, f"device {edges.device}, which the edges are on", str(values.device), op=op)


def _kind(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _refuse(argument: str, expected: str, got: str, fix: str = "", op: str = _OP) -> NoReturn:
    raise ArgumentError(f"{op}: expected '{argument}' of {expected}, got {got}{'; ' + fix if fix else ''}")


def _refuse_type(argument: str, expected: str, got: str, fix: str = "", op: str = _OP) -> NoReturn:
    raise ArgumentTypeError(f"{op}: expected '{argument}' of {expected}, got {got}{'; ' + fix if fix else ''}")
