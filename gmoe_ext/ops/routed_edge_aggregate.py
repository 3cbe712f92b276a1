"""routed_edge_aggregate: message passing over typed edges for chosen (node, expert) pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..graph import Graph
from . import _dispatch as op
from . import _rows


def routed_edge_aggregate(graph: Graph, x: Tensor, edge_table: Tensor, index: Tensor, first_expert: int = 0) -> Tensor:
    """Sum the rectified messages of typed edges for the (node, expert) pairs that a router chose.

    :func:`edge_aggregate` for chosen pairs only, so that k of n experts cost k / n of the messages (GMoE, eq. 2). With
    e = index_ir - first_expert, t = type_ij and b = edge_table:

        y_ir = sum_{j -> i} w_ij relu(x_ej + b_et)     for 0 <= e < F, else 0

    Slots whose expert lies outside [0, F) are exact zeros: hop-1 and hop-2 experts, which pass messages over different
    graphs, are two calls whose results add up. The gates are not applied yet, because what follows (a perceptron, a
    norm per expert) is not linear.

    Args:
        graph: CSR by destination with edge types 0 <= type < T; without weights w = 1.
        x: [F, N, D] one row per expert and source (GCN: W_e x), or [N, D] shared by all experts (GIN);
            float32 or bfloat16 (float64 in tests).
        edge_table: [F, T, D] one table of edge embeddings per expert, same dtype as x.
        index: [N, k] int64, the experts of each destination; a row may name an expert more than once.
        first_expert: id of the first of the F experts given here.

    Returns:
        y [N, k, D] in x's dtype, accumulated in float32 (float64 for float64).

    Raises:
        ValueError: shapes do not fit each other, or the graph has no edge types.
        TypeError: x and edge_table differ in dtype or are not floating, or index is not int64.
        GraphIndexError: a column or an edge type of the graph is out of range.

    Gradients: x, edge_table and graph.weight. The derivative of relu at 0 is 0.

    Deterministic: yes, forward and backward, bit for bit, for any number of threads.

    Examples:
        >>> graph = Graph.from_edge_index(
        ...     torch.tensor([[0], [1]]), num_nodes=2, edge_type=torch.tensor([0]), num_edge_types=1
        ... )
        >>> table = torch.tensor([[[1.0]], [[2.0]]])  # two experts
        >>> routed_edge_aggregate(graph, torch.ones(2, 1), table, torch.tensor([[0], [1]])).tolist()
        [[[0.0]], [[3.0]]]
    """
    name = "routed_edge_aggregate"
    edge_type = _rows.expect_edge_types(name, graph)
    expect_routed_edges(name, graph, x, edge_table, index)
    if not op.native():
        _rows.expect_valid(name, graph, edge_table.shape[1])
        return reference.routed_edge_aggregate(graph, x, edge_table, index, first_expert)
    x, edge_table = _rows.common_dtype(x, edge_table)
    reverse = _rows.transpose_for(name, graph, x, edge_table)
    y: Tensor = op.call(
        name, x, edge_table, index, first_expert, graph.offsets, graph.columns, edge_type,
        _rows.weight_like(graph, x), reverse.offsets, reverse.columns, reverse.edge_type, reverse.weight,
    )  # fmt: skip
    return y


def expect_routed_edges(name: str, graph: Graph, x: Tensor, edge_table: Tensor, index: Tensor) -> None:
    """Check that graph, rows, table and slots fit each other."""
    op.expect_dim(name, "edge_table", edge_table, 3, "[F, T, D]")
    op.expect_floating(name, "x", x, edge_table=edge_table)
    op.expect_dtype(name, "index", index, (torch.int64,))
    op.expect_device(name, "index", index, "x", x)
    op.expect_device(name, "graph", graph.columns, "x", x)
    experts, nodes = edge_table.shape[0], graph.num_nodes
    rows = (experts, nodes) if x.dim() == 3 else (nodes,)
    op.expect(
        x.dim() in (2, 3) and x.shape[:-1] == rows,
        name,
        "x",
        lambda: f"of shape [{experts}, {nodes}, D] or [{nodes}, D] to match 'edge_table' and 'graph'",
        list(x.shape),
    )
    op.expect_shape(name, "edge_table", edge_table, ("F", "T", x.shape[-1]), "to match 'x'")
    op.expect_shape(name, "index", index, (nodes, "k"), "to match 'graph'")


# Without an index every row has one slot, for the only expert: edge_aggregate.
def _fake(x: Tensor, edge_table: Tensor, index: Tensor | None, first: int, offsets: Tensor, *_: Any) -> Tensor:
    rows, k = (offsets.shape[0] - 1, 1) if index is None else index.shape
    return x.new_empty(rows, k, x.shape[-1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, table, index, ctx.first_expert, *rows = inputs
    ctx.save_for_backward(x, table, index, *rows)


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    x, table, index, offsets, columns, edge_type, _, *reverse = ctx.saved_tensors
    want_x, want_table, *_, want_weight = ctx.needs_input_grad[:8]
    grad_x = grad_table = grad_weight = None
    if want_x or want_table:
        _rows.expect_transpose("routed_edge_aggregate", reverse[0], "'x' and 'edge_table'")
        grad_x, grad_table = torch.ops.gmoe.routed_edge_aggregate_grad(
            grad_y, x, table, index, ctx.first_expert, *reverse, want_x, want_table
        )
    if want_weight:
        grad_weight = torch.ops.gmoe.routed_edge_aggregate_grad_weight(
            grad_y, x, table, index, ctx.first_expert, offsets, columns, edge_type
        )
    return (grad_x if want_x else None, grad_table if want_table else None, *[None] * 5, grad_weight, *[None] * 4)


def _fake_grad(grad_y: Tensor, x: Tensor, edge_table: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    want_x, want_table = others[-2:]
    experts, types, dim = edge_table.shape
    rows = x.shape[-2] if want_x else 0
    grad_x = x.new_empty(rows, dim) if x.dim() == 2 else x.new_empty(experts, rows, dim)
    return grad_x, x.new_empty(experts, types if want_table else 0, dim)


def _fake_grad_weight(grad_y: Tensor, x: Tensor, *others: Any) -> Tensor:
    return x.new_empty(others[-2].shape[0], dtype=op.wide(x))  # one for each column


op.register("routed_edge_aggregate", _fake, backward=_backward, setup_context=_setup_context, autocast="rows")
op.register("routed_edge_aggregate_grad", _fake_grad)
op.register("routed_edge_aggregate_grad_weight", _fake_grad_weight)
