"""expert_norm: batch norm with statistics per expert."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from . import _dispatch as op


def expert_norm(
    y: Tensor,
    index: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    gate: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Batch-normalise each slot over the slots of its expert, and sum a row's slots by its gates.

    The norm between an expert and its gate in a GMoE layer (GMoE, eq. 2), in training. With e = index_ir and sums over
    the n_e slots of expert e:

        mean_e = sum y_ir / n_e,   var_e = sum (y_ir - mean_e)^2 / n_e
        z_ir   = weight_e (y_ir - mean_e) / sqrt(var_e + eps) + bias_e
        out_i  = sum_r gate_ir z_ir

    An expert with fewer than two slots has no variance and is normalised by its running statistics.

    Args:
        y: [N, k, D] the result of each slot, float32 or bfloat16 (float64 in tests).
        index: [N, k] int32 or int64, the expert of each slot.
        weight: [E, D] scale, of y's dtype, like the three that follow.
        bias: [E, D] shift.
        running_mean: [E, D] mean for experts with fewer than two slots. Not changed, and gets no gradient.
        running_var: [E, D] variance for them; likewise.
        gate: [N, k] weights of the sum; None keeps the k results apart.
        eps: added to the variance.

    Returns:
        out [N, D] in y's dtype, [N, k, D] without gate; mean and var [E, D] that were used, in float32 (float64 for
        float64), var divided by n_e; and count [E] int64, the slots of each expert. Only out carries a gradient.

    Raises:
        ValueError: shapes or devices do not fit.
        TypeError: dtypes are not floating or differ, or index is not an integer tensor.
        GraphIndexError: an entry of index is out of range.

    Gradients: y, weight, bias and gate.

    Deterministic: yes, forward and backward, bit for bit, for any number of threads.

    Examples:
        >>> y, index = torch.tensor([[[1.0]], [[3.0]]]), torch.tensor([[0], [0]])
        >>> one, zero = torch.ones(1, 1), torch.zeros(1, 1)
        >>> out, mean, var, count = expert_norm(y, index, one, zero, zero, one, eps=0.0)
        >>> out.flatten().tolist(), mean.item(), var.item(), count.item()
        ([-1.0, 1.0], 2.0, 1.0, 2)
    """
    name = "expert_norm"
    op.expect_dim(name, "y", y, 3, "[N, k, D]")
    per_expert = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    op.expect_floating(name, "y", y, gate=gate, **per_expert)
    op.expect_dtype(name, "index", index, op.INTEGER)
    op.expect_device(name, "index", index, "y", y)
    rows, k, dim = y.shape
    op.expect_shape(name, "index", index, (rows, k), "to match 'y'")
    op.expect_shape(name, "gate", gate, (rows, k), "to match 'y'")
    op.expect_shape(name, "weight", weight, ("E", dim), "to match 'y'")
    for argument, value in per_expert.items():
        op.expect_shape(name, argument, value, weight.shape, "to match 'weight'")
    if not op.native():
        op.expect_index(name, "index", index, weight.shape[0])
        return reference.expert_norm(y, index, weight, bias, running_mean, running_var, gate, eps)
    out, mean, var, count = op.call(name, y, index, weight, bias, running_mean, running_var, gate, eps)
    return out, mean, var, count


def _fake(
    y: Tensor, index: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor,
    gate: Tensor | None, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    out = y.new_empty(y.shape if gate is None else (y.shape[0], y.shape[2]))
    mean, var = (weight.new_empty(weight.shape, dtype=op.wide(y)) for _ in range(2))
    return out, mean, var, weight.new_empty(weight.shape[0], dtype=torch.int64)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    y, index, weight, bias, _, _, gate, ctx.eps = inputs
    _, mean, var, count = output
    ctx.save_for_backward(y, index, weight, bias, mean, var, count, gate)
    ctx.mark_non_differentiable(mean, var, count)


def _backward(ctx: Any, grad_out: Tensor, *_statistics: Tensor | None) -> tuple[Tensor | None, ...]:
    *saved, gate = ctx.saved_tensors
    grads = torch.ops.gmoe.expert_norm_grad(grad_out, *saved, gate, ctx.eps)
    grad_y, grad_weight, grad_bias, grad_gate = grads
    return grad_y, None, grad_weight, grad_bias, None, None, None if gate is None else grad_gate, None


def _fake_grad(
    grad_out: Tensor, y: Tensor, index: Tensor, weight: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gate = others[-2]
    grad_gate = y.new_empty(0 if gate is None else y.shape[0], y.shape[1])
    return y.new_empty(y.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape), grad_gate


# Statistics over a batch are sums of squares, so they stay in float32 under autocast.
op.register("expert_norm", _fake, backward=_backward, setup_context=_setup_context, autocast="float32")
op.register("expert_norm_grad", _fake_grad)
