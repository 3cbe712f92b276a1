"""aggregate: weighted sum over neighbours, one hop or two."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..graph import Graph
from . import _dispatch as op
from . import _rows


def aggregate(graph: Graph, x: Tensor, hops: int = 1) -> Tensor:
    """Sum the weighted features of each node's in-neighbours, over one hop or two.

    GMoE, eqs. 2 and 11, with A the weighted adjacency matrix of the graph:

        y_i = sum_{j -> i} w_ij x_j        y = A x;  A (A x) for hops=2

    A^2, which has many times the edges of A on real graphs, is never built.

    Args:
        graph: N nodes, CSR by destination; a graph without weights sums with w = 1. ``graph.gcn_norm()`` carries the
            weights of a GCN, ``graph.mean_norm()`` those of the mean.
        x: [N, D] float32 or bfloat16 (float64 in tests).
        hops: 1 or 2.

    Returns:
        y [N, D] in x's dtype, each hop accumulated in float32 (float64 for float64). A node without
        incoming edges gets zeros. Complex weights give complex sums.

    Raises:
        ValueError: x does not have one row per node, or hops is neither 1 nor 2.
        TypeError: x is not of a floating dtype.
        GraphIndexError: a column of the graph is out of range.

    Gradients: x and graph.weight; both can be differentiated again.

    Deterministic: yes, forward and backward, bit for bit, for any number of threads.

    Examples:
        >>> graph = Graph.from_edge_index(torch.tensor([[0, 1], [2, 2]]), num_nodes=3)
        >>> aggregate(graph, torch.tensor([[1.0], [2.0], [4.0]])).tolist()
        [[0.0], [0.0], [3.0]]
    """
    _rows.expect_features("aggregate", graph, x)
    op.expect(hops in (1, 2), "aggregate", "hops", "of 1 or 2", hops)
    weight = graph.weight
    if weight is not None and weight.is_complex():
        return _aggregate_complex(graph, weight, x, hops)
    if not op.native():
        _rows.expect_valid("aggregate", graph)
        return reference.aggregate(graph, x, hops)
    weight = None if weight is None else weight.to(op.wide(x))
    # Weights need the transpose too: the second hop's rows and a second derivative depend on them.
    reverse = _rows.transpose_for("aggregate", graph, x, *([] if weight is None else [weight]))
    y = x
    for _ in range(hops):
        y = op.call(
            "aggregate", y, graph.offsets, graph.columns, weight, reverse.offsets, reverse.columns, reverse.weight,
            reverse.order,
        )  # fmt: skip
    return y


def _aggregate_complex(graph: Graph, weight: Tensor, x: Tensor, hops: int) -> Tensor:
    real, imaginary = (graph.with_weight(part.contiguous()) for part in (weight.real, weight.imag))
    a, b = aggregate(real, x), aggregate(imaginary, x)
    if hops == 2:
        a, b = aggregate(real, a) - aggregate(imaginary, b), aggregate(real, b) + aggregate(imaginary, a)
    return torch.complex(a.to(op.wide(x)), b.to(op.wide(x)))


def _fake(x: Tensor, offsets: Tensor, *_: Tensor | None) -> Tensor:
    return x.new_empty(offsets.shape[0] - 1, x.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, offsets, columns, weight, *reverse = inputs
    # Only the gradient of the weights needs the rows.
    kept_x = x if weight is not None and weight.requires_grad else None
    ctx.save_for_backward(kept_x, offsets, columns, weight, *reverse)


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    x, offsets, columns, weight, reverse_offsets, reverse_columns, reverse_weight, reverse_order = ctx.saved_tensors
    grad_x = grad_weight = None
    if ctx.needs_input_grad[0]:
        _rows.expect_transpose("aggregate", reverse_offsets, "'x'")
        # reverse_weight is weight in another order; passing it keeps this gradient differentiable in the weights.
        grad_x = torch.ops.gmoe.aggregate(
            grad_y, reverse_offsets, reverse_columns, reverse_weight, offsets, columns, weight, None
        )
    if ctx.needs_input_grad[3]:
        grad_weight = torch.ops.gmoe.aggregate_grad_weight(
            grad_y, x, offsets, columns, reverse_offsets, reverse_columns, reverse_order
        )
    return grad_x, None, None, grad_weight, None, None, None, None


def _fake_grad_weight(grad_y: Tensor, x: Tensor, offsets: Tensor, columns: Tensor, *_: Tensor | None) -> Tensor:
    return x.new_empty(columns.shape[0], dtype=op.wide(x))


def _setup_context_grad_weight(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward_grad_weight(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate the weights' gradient, which is linear in both arguments, with the incoming gradient as weights."""
    grad_y, x, offsets, columns, reverse_offsets, reverse_columns, reverse_order = ctx.saved_tensors
    if reverse_order is None:
        raise RuntimeError(
            "gmoe::aggregate_grad_weight has no derivative without 'transpose_order': third derivatives are not "
            "implemented; fix: use gmoe_ext.reference"
        )
    reverse = grad.index_select(0, reverse_order)
    to_grad_y = torch.ops.gmoe.aggregate(
        x, offsets, columns, grad, reverse_offsets, reverse_columns, reverse, reverse_order
    )
    to_x = torch.ops.gmoe.aggregate(grad_y, reverse_offsets, reverse_columns, reverse, offsets, columns, grad, None)
    return to_grad_y, to_x, None, None, None, None, None


# The raw operator takes the transposed graph only for its gradients; a forward call may pass None for all of it.
# transpose_weight is weight in the transpose's order, transpose_order the position of each edge in the transpose.
op.register("aggregate", _fake, backward=_backward, setup_context=_setup_context, autocast="rows")
op.register(
    "aggregate_grad_weight",
    _fake_grad_weight,
    backward=_backward_grad_weight,
    setup_context=_setup_context_grad_weight,
)
