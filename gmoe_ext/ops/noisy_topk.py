"""noisy_topk: the training gate of GMoE and the sums behind its balance losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from . import _dispatch as op


def noisy_topk(clean: Tensor, sigma: Tensor, noise: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Route each row to its k highest noisy logits, and sum each expert's gates and chances of being chosen.

    The gate of GMoE in training (GMoE, eqs. 3 to 7), in one pass over the logits:

        Q_ie         = clean_ie + noise_ie sigma_ie
        index_i      = the k experts with the largest Q_ie, in descending order
        gate_ir      = exp(Q_ir) / sum_s exp(Q_is)         Q_ir: logit of expert index_ir
        importance_e = sum of the gates of expert e
        load_e       = sum_i Phi(z_ie),   z_ie = (clean_ie - kth_ie) / sigma_ie

    kth_ie is the k-th largest of Q_i without Q_ie; with k = E there is none and every chance is 1. The balance losses
    are the squared coefficients of variation of importance and load.

    Args:
        clean: [N, E] logits, float32 or bfloat16 (float64 in tests).
        sigma: [N, E] standard deviation of the noise, positive, of clean's dtype.
        noise: [N, E] drawn from a standard normal distribution, of clean's dtype. Gets no gradient.
        k: experts per row, 1 <= k <= E.

    Returns:
        gate [N, k] in clean's dtype, descending; index [N, k] int64, equal logits to the lower expert, NaN highest; and
        importance and load, [E] each, float32 (float64 for float64).

    Raises:
        ValueError: shapes or devices do not fit, or k is out of [1, E].
        TypeError: dtypes are not floating or differ.

    Gradients: clean and sigma, through gate, importance and load.

    Deterministic: yes, forward and backward, bit for bit, for any number of threads.

    Examples:
        >>> clean, one = torch.tensor([[0.0, 2.0, 1.0]]), torch.ones(1, 3)
        >>> gate, index, importance, load = noisy_topk(clean, one, 0 * one, k=1)
        >>> index.tolist(), importance.tolist(), [round(chance, 4) for chance in load.tolist()]
        ([[1]], [0.0, 1.0, 0.0], [0.0228, 0.8413, 0.1587])
    """
    name = "noisy_topk"
    op.expect_dim(name, "clean", clean, 2, "[N, E]")
    op.expect_floating(name, "clean", clean, sigma=sigma, noise=noise)
    op.expect_shape(name, "sigma", sigma, clean.shape, "to match 'clean'")
    op.expect_shape(name, "noise", noise, clean.shape, "to match 'clean'")
    op.expect(1 <= k <= clean.shape[1], name, "k", lambda: f"in [1, E] = [1, {clean.shape[1]}]", k)
    if not op.native():
        return reference.noisy_topk(clean, sigma, noise, k)
    gate, index, importance, load = op.call(name, clean, sigma, noise, k)
    return gate, index, importance, load


def _fake(clean: Tensor, sigma: Tensor, noise: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, experts = clean.shape
    index = clean.new_empty(rows, k, dtype=torch.int64)
    importance, load = (clean.new_empty(experts, dtype=op.wide(clean)) for _ in range(2))
    return clean.new_empty(rows, k), index, importance, load


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:3], *output[:2])  # clean, sigma, noise, gate, index
    ctx.mark_non_differentiable(output[1])


def _backward(
    ctx: Any, grad_gate: Tensor, _grad_index: Tensor | None, grad_importance: Tensor, grad_load: Tensor
) -> tuple[Tensor | None, ...]:
    grad_clean, grad_sigma = torch.ops.gmoe.noisy_topk_grad(grad_gate, grad_importance, grad_load, *ctx.saved_tensors)
    return grad_clean, grad_sigma, None, None


def _fake_grad(
    grad_gate: Tensor, grad_importance: Tensor, grad_load: Tensor, clean: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    return clean.new_empty(clean.shape), clean.new_empty(clean.shape)


# Routing stays in float32 under autocast, so that ties do not depend on the precision.
op.register("noisy_topk", _fake, backward=_backward, setup_context=_setup_context, autocast="float32")
op.register("noisy_topk_grad", _fake_grad)
