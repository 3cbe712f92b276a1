"""sparse_expert_linear: one linear layer per expert, applied to rows of features that are mostly zeros."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..feature_rows import FeatureRows
from . import _dispatch as op
from ._sparse_rows import columns_for, expect_no_addend, expect_rows
from .expert_linear import expert_linear
from .expert_plan import expert_plan


def sparse_expert_linear(
    x: FeatureRows,
    weight: Tensor,
    bias: Tensor | None,
    index: Tensor,
    gate: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """Apply to each row the linear layers of its experts, and combine the k results by the row's gates.

    ``expert_linear`` for a first layer, in time that follows the values other than 0. GMoE, eq. 2; RbM, eqs. 1 and 5,
    with e = index_ir:

        z_ir = weight_e (scale_e * x_i) + bias_e
        y_i  = sum_r gate_ir z_ir          [N, Dout]      with a gate
        y_ir = z_ir                        [N, k, Dout]   without

    Args:
        x: [N, Din]; values [V, k] give each slot of a row inputs of its own.
        weight: [E, Dout, Din] one matrix per expert, float32 or bfloat16 (float64 in tests). One whose memory holds
            the weights of an input side by side (``weight.transpose(1, 2).is_contiguous()``) is read in place.
        bias: [E, Dout] or None.
        index: [N, k] int64 or int32 experts of each row.
        gate: [N, k] weights of the sum; None keeps the k results apart.
        scale: [E, Din] factors of the inputs; None means 1.

    Returns:
        y [N, Dout] in weight's dtype, accumulated in float32 (float64 for float64); [N, k, Dout] without gate.

    Raises:
        ValueError: shapes do not fit each other.
        TypeError: dtypes differ, or x is not FeatureRows.
        GraphIndexError: an expert or a column of x is out of range.
        DerivativeError: values of x want a gradient.

    Gradients: weight, bias, gate and scale, each computed only when needed; none for x.

    Deterministic: yes, forward and backward, bit for bit, for any number of threads.

    Examples:
        >>> x = FeatureRows.from_dense(torch.tensor([[0.0, 3.0]]))
        >>> weight = torch.tensor([[[1.0, 2.0]], [[4.0, 5.0]]])
        >>> sparse_expert_linear(x, weight, None, torch.tensor([[1, 0]]), torch.tensor([[0.5, 0.5]])).tolist()
        [[10.5]]
    """
    _check(x, weight, bias, index, gate, scale)
    if not op.native():
        op.expect_index("sparse_expert_linear", "columns", x.columns, x.num_sparse)
        op.expect_index("sparse_expert_linear", "index", index, weight.shape[0])
        return reference.sparse_expert_linear(x, weight, bias, index, gate, scale)
    values = None if x.values is None else x.values.to(op.wide(weight))
    learnt = any(t is not None and t.requires_grad for t in (weight, scale))
    by_column: tuple[Tensor | None, ...] = (None,) * 4
    if learnt and torch.is_grad_enabled():
        offsets, rows, order, column_values = columns_for("sparse_expert_linear", x)
        # Values of single slots are found by their place in the rows; others have been sorted with the columns.
        shared = None if column_values is None else column_values.to(op.wide(weight))
        by_column = (offsets, rows, order if values is not None and values.dim() == 2 else None, shared)
    table = weight.transpose(1, 2)
    y: Tensor = op.call(
        "sparse_expert_linear", values, x.offsets, x.columns, table, scale, bias, index, gate, *by_column
    )
    return y if x.dense is None else y + _dense_part(x.dense, x.num_sparse, table, index, gate, scale)


def _dense_part(
    dense: Tensor, num_sparse: int, table: Tensor, index: Tensor, gate: Tensor | None, scale: Tensor | None
) -> Tensor:
    # Cut from the table, so that both parts of its gradient have its order in memory and are added in one pass.
    weight = table[:, num_sparse:].transpose(1, 2)
    if scale is not None:
        weight = weight * scale[:, None, num_sparse:]
    source = None
    if dense.dim() == 3:  # every slot has a row of its own
        source = torch.arange(index.numel(), device=index.device).view_as(index)
        dense = dense.flatten(0, 1)
    return expert_linear(dense.to(weight.dtype), weight, None, expert_plan(index, weight.shape[0]), gate, source)


def _check(
    x: FeatureRows, weight: Tensor, bias: Tensor | None, index: Tensor, gate: Tensor | None, scale: Tensor | None
) -> None:
    name = "sparse_expert_linear"
    expect_rows(name, x, weight, bias=bias, gate=gate, scale=scale)
    expect_no_addend(name, x)
    op.expect_dim(name, "weight", weight, 3, "[E, Dout, Din]")
    num_experts, out_dim, in_dim = weight.shape
    op.expect(x.shape[1] == in_dim, name, "x", lambda: f"of {in_dim} columns to match 'weight'", x.shape[1])
    op.expect_dim(name, "index", index, 2, "[N, k]")
    op.expect_dtype(name, "index", index, op.INTEGER)
    op.expect_shape(name, "index", index, (len(x), "k"), "to match 'x'")
    op.expect_shape(name, "bias", bias, (num_experts, out_dim), "to match 'weight'")
    op.expect_shape(name, "gate", gate, tuple(index.shape), "to match 'index'")
    op.expect_shape(name, "scale", scale, (num_experts, in_dim), "to match 'weight'")
    if x.values is not None and x.values.dim() == 2:
        op.expect_shape(name, "x", x.values, ("V", index.shape[1]), "to match 'index'")


def _fake(
    value: Tensor | None, offsets: Tensor, columns: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None,
    index: Tensor, gate: Tensor | None, *_: Any,
) -> Tensor:  # fmt: skip
    num_rows, k = index.shape
    out_dim = weight.shape[2]
    return weight.new_empty(num_rows, k, out_dim) if gate is None else weight.new_empty(num_rows, out_dim)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    value, offsets, columns, weight, scale, bias, index, gate, *by_column = ctx.saved_tensors
    _, _, _, needs_weight, needs_scale, needs_bias, _, needs_gate, *_ = ctx.needs_input_grad
    gmoe = torch.ops.gmoe
    grad_weight = grad_scale = grad_bias = grad_gate = None
    if needs_weight or needs_scale:
        if by_column[0] is None:
            raise RuntimeError(
                "gmoe::sparse_expert_linear: expected 'transpose_offsets' for the gradient of 'weight', got None; "
                "fix: call gmoe_ext.ops.sparse_expert_linear, which passes the columns of x"
            )
        *rows, order, shared = by_column
        grad_weight, grad_scale = gmoe.sparse_expert_linear_grad_weight(
            grad_y, shared if order is None else value, *rows, order, weight, scale, index, gate
        )
    if needs_bias:
        plan = gmoe.expert_plan(index, weight.shape[0])
        grad_bias = gmoe.expert_linear_grad_bias(grad_y, *plan, index.shape[1], gate)
    if needs_gate and gate is not None:
        grad_gate = gmoe.sparse_expert_linear_grad_gate(grad_y, value, offsets, columns, weight, scale, bias, index)
    scaled = grad_scale if needs_scale else None
    return None, None, None, grad_weight, scaled, grad_bias, None, grad_gate, None, None, None, None


def _fake_grad_weight(
    grad_y: Tensor, value: Tensor | None, offsets: Tensor, rows: Tensor, order: Tensor | None, weight: Tensor,
    scale: Tensor | None, *_: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    num_experts, in_dim, _out_dim = weight.shape
    return weight.new_empty(weight.shape), weight.new_empty(0 if scale is None else num_experts, in_dim)


def _fake_grad_gate(
    grad_y: Tensor, value: Tensor | None, offsets: Tensor, columns: Tensor, weight: Tensor, scale: Tensor | None,
    bias: Tensor | None, index: Tensor,
) -> Tensor:  # fmt: skip
    return weight.new_empty(index.shape)


# The raw operator takes the columns of x only for its gradients; a forward call may pass None for all of them.
op.register("sparse_expert_linear", _fake, backward=_backward, setup_context=_setup_context, autocast="float32")
op.register("sparse_expert_linear_grad_weight", _fake_grad_weight)
op.register("sparse_expert_linear_grad_gate", _fake_grad_gate)
