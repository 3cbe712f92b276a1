"""Index tensors under ``gmoe_ext.Graph``: checks of its arguments, and arithmetic with offsets."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from .errors import GraphIndexError

_OP = "Graph.from_edge_index"
_INT_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_edge_index(edge_index: Tensor, num_nodes: int) -> int:
    """Check integers [2, M] in [0, num_nodes); return num_nodes as int."""
    if not isinstance(edge_index, Tensor):
        _refuse(TypeError, "edge_index", "an integer tensor of shape [2, M]", type(edge_index).__name__)
    if edge_index.dtype not in _INT_DTYPES:
        _refuse(TypeError, "edge_index", "an integer dtype", str(edge_index.dtype), "pass edge_index.long()")
    if edge_index.ndim != 2 or edge_index.shape[0] != 2:
        fix = "row 0 holds the sources, row 1 the destinations"
        _refuse(ValueError, "edge_index", "shape [2, M]", str(list(edge_index.shape)), fix)
    num_nodes = int(num_nodes)
    if num_nodes < 0:
        _refuse(ValueError, "num_nodes", "a number >= 0", str(num_nodes))
    check_range(_OP, "edge_index", edge_index, num_nodes)
    return num_nodes


def check_weight(weight: Tensor | None, edge_index: Tensor) -> None:
    """Check finite floating [M], or None."""
    if weight is None:
        return
    _check_beside("edge_weight", weight, edge_index)
    if not weight.is_floating_point():
        _refuse(TypeError, "edge_weight", "a floating dtype", str(weight.dtype), "pass edge_weight.float()")
    finite = weight.detach().isfinite()
    if not bool(finite.all()):
        position = int((~finite).nonzero()[0])
        _refuse(ValueError, "edge_weight", "finite values", f"{weight[position].item()} at position {position}")


def check_edge_type(edge_type: Tensor | None, edge_index: Tensor, num_edge_types: int | None) -> int:
    """Check integers [M] in [0, T), or None; return T, by default the largest type + 1."""
    if edge_type is None:
        if num_edge_types:
            _refuse(ValueError, "edge_type", f"shape [M] beside num_edge_types={num_edge_types}", "None")
        return 0
    _check_beside("edge_type", edge_type, edge_index)
    if edge_type.dtype not in _INT_DTYPES:
        _refuse(TypeError, "edge_type", "an integer dtype", str(edge_type.dtype), "pass edge_type.long()")
    if num_edge_types is None:
        num_edge_types = int(edge_type.max()) + 1 if edge_type.numel() else 0
    check_range(_OP, "edge_type", edge_type, num_edge_types)
    return int(num_edge_types)


def check_distinct(nodes: Tensor, num_nodes: int) -> Tensor:
    """Check distinct integers [S] in [0, num_nodes); return them as int64."""
    if not isinstance(nodes, Tensor) or nodes.ndim != 1 or nodes.dtype not in _INT_DTYPES:
        got = f"{nodes.dtype} {list(nodes.shape)}" if isinstance(nodes, Tensor) else type(nodes).__name__
        raise TypeError(f"Graph.subgraph: expected 'nodes' as an integer tensor of shape [S], got {got}")
    check_range("Graph.subgraph", "nodes", nodes, num_nodes)
    nodes = nodes.long()
    counts = torch.bincount(nodes, minlength=num_nodes)
    if nodes.numel() and int(counts.max()) > 1:
        raise ValueError(
            f"Graph.subgraph: expected distinct ids in 'nodes', got {int(counts.argmax())} more than once; "
            "pass nodes.unique()"
        )
    return nodes


def check_range(op: str, argument: str, values: Tensor, bound: int) -> None:
    """Check 0 <= values < bound; raise GraphIndexError for the first bad element in flat order."""
    if values.numel() == 0:
        return
    low, high = values.aminmax()
    if int(low) < 0 or int(high) >= bound:
        flat = values.reshape(-1)
        position = int(((flat < 0) | (flat >= bound)).nonzero()[0])
        raise GraphIndexError(op, argument, position, int(flat[position]), bound)


def check_ascending(op: str, argument: str, values: Tensor, ascending: Tensor, bound: int) -> None:
    """Check ``values`` as `check_range` does, but read two elements only: the ends of the sorted ``ascending``."""
    # A compiler cannot branch on the contents of a tensor.
    if torch.compiler.is_compiling() or ascending.numel() == 0:
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
    offsets[1:] = torch.bincount(rows, minlength=num_rows).cumsum(0)
    return offsets


def _check_beside(argument: str, values: Tensor, edge_index: Tensor) -> None:
    if not isinstance(values, Tensor):
        _refuse(TypeError, argument, "a tensor of shape [M]", type(values).__name__)
    expected = [edge_index.shape[1]]
    if list(values.shape) != expected:
        _refuse(ValueError, argument, f"shape {expected} to match 'edge_index'", str(list(values.shape)))
    if values.device != edge_index.device:
        _refuse(ValueError, argument, f"device {edge_index.device} to match 'edge_index'", str(values.device))


def _refuse(kind: type[Exception], argument: str, expected: str, got: str, fix: str = "") -> NoReturn:
    raise kind(f"{_OP}: expected '{argument}' of {expected}, got {got}{'; ' + fix if fix else ''}")
