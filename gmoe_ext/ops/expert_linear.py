"""expert_linear: one linear layer per expert, applied to the rows routed to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..plan import ExpertPlan
from . import _dispatch as op


def expert_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    plan: ExpertPlan,
    gate: Tensor | None = None,
    source: Tensor | None = None,
) -> Tensor:
    """Apply to each routed row the linear layer of its expert, and combine a row's k results by its gates.

    Nothing is computed for an expert that a row did not choose. GMoE, eq. 2; RbM, eq. 1, with e = index_ir and
    s = source_ir (s = i without source):

        z_ir = weight_e x_s + bias_e
        y_i  = sum_r gate_ir z_ir          [N, Dout]      with a gate
        y_ir = z_ir                        [N, k, Dout]   without

    source lets the choices of a row read different rows: hop-1 and hop-2 experts read different aggregates of one node,
    stacked in x.

    Args:
        x: [R, Din] rows, float32 or bfloat16 (float64 in tests).
        weight: [E, Dout, Din] one matrix per expert, same dtype as x.
        bias: [E, Dout] or None.
        plan: from :func:`expert_plan` of an index [N, k] with num_experts E.
        gate: [N, k] weights of the sum; None keeps the k results apart.
        source: [N, k] int64 or int32, the row of x that slot (i, r) reads, 0 <= source < R;
            None reads row i, which needs R = N.

    Returns:
        y [N, Dout] in x's dtype, accumulated in float32 (float64 for float64); [N, k, Dout] without gate. On CUDA,
        float32 products use TF32, here and in the gradients, if torch.backends.cuda.matmul allows it.

    Raises:
        ValueError: shapes do not fit each other.
        TypeError: dtypes differ, or source is not an integer tensor.
        GraphIndexError: an entry of source or of the plan is out of range.

    Gradients: x, weight, bias and gate, each computed only when needed.

    Deterministic: yes, forward and backward, bit for bit, for any number of threads.

    Examples:
        >>> plan = expert_plan(torch.tensor([[0, 1]]), num_experts=2)
        >>> weight = torch.stack([torch.eye(2), 2 * torch.eye(2)])
        >>> expert_linear(torch.ones(1, 2), weight, None, plan, gate=torch.tensor([[0.5, 0.5]])).tolist()
        [[1.5, 1.5]]
    """
    inputs = (x, weight, bias, plan, gate, source)
    if not op.checks_inside(x, weight, bias, plan.order, gate, source):
        _check(*inputs)
    if not op.native():
        op.expect_index("expert_linear", "order", plan.order, plan.num_rows * plan.k)
        if source is not None:
            op.expect_index("expert_linear", "source", source, x.shape[0])
        return reference.expert_linear(*inputs)
    try:
        y: Tensor = op.call(
            "expert_linear", x, weight, bias, plan.offsets, plan.order, plan.k, gate, source, op.allows_tf32(x)
        )
    except RuntimeError:
        _check(*inputs)
        raise
    return y


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, plan: ExpertPlan, gate: Tensor | None, source: Tensor | None
) -> None:
    """Check the operands; under autocast their dtypes may differ."""
    name = "expert_linear"
    slots = (plan.num_rows, plan.k)
    op.expect_floating(name, "x", x, weight=weight, bias=bias, gate=gate)
    op.expect_device(name, "plan", plan.order, "x", x)
    op.expect_shape(name, "weight", weight, (plan.num_experts, "Dout", "Din"), "to match the plan")
    num_experts, out_dim, in_dim = weight.shape
    op.expect_shape(name, "x", x, ("R", in_dim), "to match 'weight'")
    op.expect_shape(name, "bias", bias, (num_experts, out_dim), "to match 'weight'")
    op.expect_shape(name, "gate", gate, slots, "to match the plan")
    if source is None:
        op.expect_shape(name, "x", x, (plan.num_rows, in_dim), "to match the plan")
    else:
        op.expect_dtype(name, "source", source, op.INTEGER)
        op.expect_device(name, "source", source, "x", x)
        op.expect_shape(name, "source", source, slots, "to match the plan")


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, offsets: Tensor, order: Tensor, k: int, gate: Tensor | None, *_: Any
) -> Tensor:
    num_rows, out_dim = order.shape[0] // k, weight.shape[1]
    return x.new_empty(num_rows, k, out_dim) if gate is None else x.new_empty(num_rows, out_dim)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.k, gate, source, ctx.tf32 = inputs
    ctx.save_for_backward(*tensors, gate, source)


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, offsets, order, gate, source = ctx.saved_tensors
    needs_x, needs_weight, needs_bias, _, _, _, needs_gate, *_ = ctx.needs_input_grad
    gmoe, k, tf32 = torch.ops.gmoe, ctx.k, ctx.tf32
    grad_x = grad_weight = grad_bias = grad_gate = None
    needs_gate = needs_gate and gate is not None
    if needs_x and needs_gate:
        # Both need the product of grad_y with the weights; this operator computes it once.
        grad_x, grad_gate = gmoe.expert_linear_grad_x_gate(
            grad_y, x, weight, bias, offsets, order, k, gate, source, tf32
        )
    elif needs_x:
        grad_x = gmoe.expert_linear_grad_x(grad_y, x, weight, offsets, order, k, gate, source, tf32)
    elif needs_gate:
        grad_gate = gmoe.expert_linear_grad_gate(grad_y, x, weight, bias, offsets, order, k, source, tf32)
    if needs_weight:
        grad_weight = gmoe.expert_linear_grad_weight(grad_y, x, offsets, order, k, gate, source, tf32)
    if needs_bias and bias is not None:
        grad_bias = gmoe.expert_linear_grad_bias(grad_y, offsets, order, k, gate)
    return grad_x, grad_weight, grad_bias, None, None, None, grad_gate, None, None


def _fake_grad_x(grad_y: Tensor, x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


def _fake_grad_weight(grad_y: Tensor, x: Tensor, offsets: Tensor, *_: Any) -> Tensor:
    return x.new_empty(offsets.shape[0] - 1, grad_y.shape[-1], x.shape[1])


def _fake_grad_bias(grad_y: Tensor, offsets: Tensor, *_: Any) -> Tensor:
    return grad_y.new_empty(offsets.shape[0] - 1, grad_y.shape[-1])


def _fake_grad_gate(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, offsets: Tensor, order: Tensor, k: int, *_: Any
) -> Tensor:
    return x.new_empty(order.shape[0] // k, k)


def _fake_grad_x_gate(grad_y: Tensor, x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return _fake_grad_x(grad_y, x), _fake_grad_gate(grad_y, x, *others)


op.register("expert_linear", _fake, backward=_backward, setup_context=_setup_context, autocast="product")
op.register("expert_linear_grad_x", _fake_grad_x)
op.register("expert_linear_grad_weight", _fake_grad_weight)
op.register("expert_linear_grad_bias", _fake_grad_bias)
op.register("expert_linear_grad_gate", _fake_grad_gate)
op.register("expert_linear_grad_x_gate", _fake_grad_x_gate)
