"""dropout: zeros elements at random, for one or several slots of a row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from . import _dispatch as op


def dropout(x: Tensor, seed: Tensor, rate: float, slots: int = 1) -> Tensor:
    """Zero elements with probability ``rate`` and scale the others up, for each of the slots of a row.

    Result j, counted through, is kept if 16 bits drawn from (seed, j) alone are at least round(2^16 rate) = d:

        word_w    = splitmix64(splitmix64(seed) + w 0x9E3779B97F4A7C15)       holds the levels of 4w .. 4w + 3
        level_j   = (word_(j div 4) >> 16 (j mod 4)) mod 2^16
        y_nK+r,c  = x_nc 2^16 / (2^16 - d) if level_j >= d else 0             j = (nK + r) D + c

    Args:
        x: [N, D] float32 or bfloat16 (float64 in tests).
        seed: [1] int64 on the device of x, any value.
        rate: in [0, 1), taken as the nearest multiple of 2^-16 below 1.
        slots: K, how many results to draw for each row.

    Returns:
        y [N * K, D] in x's dtype; row n K + r is slot r of row n. As in ``torch.nn.functional.dropout``, what is not
        finite gives NaN where it is dropped.

    Raises:
        ValueError: x is not 2-D, seed is not of shape [1], rate is out of [0, 1) or slots < 1.
        TypeError: x is not floating, or seed not int64.

    Gradients: x. The numbers are drawn again, so that nothing but the seed is kept.

    Deterministic: yes, bit for bit, for any number of threads; every device drops the same elements.

    Examples:
        >>> dropout(torch.ones(1, 4), torch.tensor([7]), rate=0.5, slots=2).tolist()
        [[2.0, 0.0, 2.0, 2.0], [2.0, 0.0, 0.0, 2.0]]
    """
    op.expect_dim("dropout", "x", x, 2, "[N, D]")
    op.expect_dtype("dropout", "x", x, op.FLOATING)
    op.expect_shape("dropout", "seed", seed, (1,), "for one draw")
    op.expect_dtype("dropout", "seed", seed, (torch.int64,))
    op.expect_device("dropout", "seed", seed, "x", x)
    op.expect(0.0 <= rate < 1.0, "dropout", "rate", "in [0, 1)", rate)
    op.expect(slots >= 1, "dropout", "slots", ">= 1", slots)
    if not op.native():
        return reference.dropout(x, seed, rate, slots)
    y: Tensor = op.call("dropout", x, seed, rate, slots)
    return y


def _fake(x: Tensor, seed: Tensor, rate: float, slots: int) -> Tensor:
    return x.new_empty(x.shape[0] * slots, x.shape[1])


def _fake_grad_x(grad_y: Tensor, seed: Tensor, rate: float, slots: int) -> Tensor:
    return grad_y.new_empty(grad_y.shape[0] // slots, grad_y.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, seed, ctx.rate, ctx.slots = inputs
    ctx.save_for_backward(seed)


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    return torch.ops.gmoe.dropout_grad_x(grad_y, *ctx.saved_tensors, ctx.rate, ctx.slots), None, None, None


def _backward_grad_x(ctx: Any, grad_grad_x: Tensor) -> tuple[Tensor | None, ...]:
    return torch.ops.gmoe.dropout(grad_grad_x, *ctx.saved_tensors, ctx.rate, ctx.slots), None, None, None


op.register("dropout", _fake, backward=_backward, setup_context=_setup_context, autocast="rows")
op.register("dropout_grad_x", _fake_grad_x, backward=_backward_grad_x, setup_context=_setup_context)
