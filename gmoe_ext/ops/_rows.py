"""Shared by the operators over CSR rows: checks of graph and features, weights, and the transpose."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError, GraphIndexError
from ..graph import Graph, expect_graph
from . import _dispatch as op


class Transpose(NamedTuple):
    """The CSR arrays of the transposed graph, used by gradients; all None when no gradient needs them."""

    offsets: Tensor | None = None
    columns: Tensor | None = None
    edge_type: Tensor | None = None
    weight: Tensor | None = None
    order: Tensor | None = None


def expect_features(name: str, graph: Graph, x: Tensor) -> None:
    """Check that x is a floating [N, D] that fits the graph."""
    expect_graph(f"gmoe::{name}", graph)
    op.expect_dim(name, "x", x, 2, "[N, D]")
    op.expect_dtype(name, "x", x, op.FLOATING)
    if x.shape[0] != graph.num_nodes:  # a full check would be a twentieth of a small call
        op.expect_shape(name, "x", x, (graph.num_nodes, "D"), "to match 'graph'")
    op.expect_device(name, "graph", graph.columns, "x", x)


def expect_edge_types(name: str, graph: Graph) -> Tensor:
    """Return the edge types of the graph; raise ``ValueError`` if it has none."""
    expect_graph(f"gmoe::{name}", graph)
    if graph.edge_type is None:
        raise ArgumentError(
            f"gmoe::{name}: expected 'graph' with edge types, got one without; "
            "fix: Graph.from_edge_index(..., edge_type=)"
        )
    return graph.edge_type


def expect_valid(name: str, graph: Graph, num_edge_types: int | None = None) -> None:
    """Check offsets, columns and edge types for the reference; the native operators check for themselves."""
    offsets, num_edges = graph.offsets, graph.num_edges
    rise = bool(offsets[0] == 0) and bool(offsets[-1] == num_edges) and bool((offsets.diff() >= 0).all())
    op.expect(rise, name, "offsets", lambda: f"to rise from 0 to {num_edges}", offsets)
    op.expect_index(name, "columns", graph.columns, graph.num_nodes)
    if num_edge_types is not None and graph.edge_type is not None:
        op.expect_index(name, "edge_type", graph.edge_type, num_edge_types)


def weight_like(graph: Graph, x: Tensor) -> Tensor | None:
    """Return the graph's weights in the dtype of sums over rows of x."""
    weight = graph.weight
    if weight is None:
        return None
    if weight.is_complex():
        raise ArgumentTypeError(
            "gmoe_ext.ops: expected 'graph' with real weights, got complex ones; only aggregate takes them"
        )
    return weight.to(op.wide(x))


def transpose_for(name: str, graph: Graph, x: Tensor, *others: Tensor) -> Transpose:
    """Return the transposed rows if x or one of the others needs a gradient."""
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *others))):
        return Transpose()
    try:
        reverse = graph.transpose()
    except GraphIndexError as error:
        # Transposing runs before the operator's own check, so the error is reported under the operator's name.
        raise GraphIndexError(str(error).replace("Graph.transpose", f"gmoe::{name}", 1)) from None
    return Transpose(
        reverse.offsets, reverse.columns, reverse.edge_type, weight_like(reverse, x), graph.transpose_order
    )


def expect_transpose(name: str, offsets: Tensor | None, of: str) -> None:
    """Check in a backward pass that the raw operator was given the rows from :func:`transpose_for`."""
    if offsets is None:
        raise RuntimeError(
            f"gmoe::{name}: expected 'transpose_offsets' for the gradient of {of}, got None; "
            f"fix: call gmoe_ext.ops.{name}, which passes the transposed graph"
        )


def common_dtype(x: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Promote x and the table, whose dtypes may differ under autocast, to the wider dtype."""
    dtype = torch.promote_types(x.dtype, table.dtype)
    return x.to(dtype), table.to(dtype)
