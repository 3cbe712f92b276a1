"""cosine_topk: route rows to their k nearest expert embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..feature_rows import FeatureRows, Features
from . import _dispatch as op
from . import _sparse_routing, _sparse_rows
from .topk_softmax import topk_softmax


def cosine_topk(x: Features, memory: Tensor, k: int, eps: float = 1e-12) -> tuple[Tensor, Tensor]:
    """Route each row to its k nearest expert embeddings by cosine similarity.

    RbM, eq. 3:

        c_ie    = x_i . q_e / (max(|x_i|, eps) max(|q_e|, eps))
        index_i = the k experts with the largest c_ie, in descending order
        gate_ir = exp(c_ir) / sum_s exp(c_is)        c_ir: cosine to expert index_ir

    Args:
        x: [N, D] rows to route, float32 or bfloat16 (float64 in tests), or FeatureRows.
        memory: [E, D] one embedding per expert, of x's dtype.
        k: experts per row, 1 <= k <= E.
        eps: smallest norm; a zero row has cosine 0 to every expert.

    Returns:
        gate [N, k] in x's dtype, descending, and index [N, k] int64. Equal cosines go to the lower expert; NaN ranks
        highest, as in torch.sort.

    Raises:
        ValueError: shapes or devices do not fit, or k is out of [1, E].
        TypeError: dtypes are not floating or differ.

    Gradients: x, unless it is FeatureRows; memory gets none (stop-gradient in eq. 3).

    Deterministic: yes, bit for bit, for any number of threads.

    Examples:
        >>> gate, index = cosine_topk(torch.ones(1, 4), torch.eye(4), k=2)
        >>> index.tolist(), gate.tolist()
        ([[0, 1]], [[0.5, 0.5]])
    """
    expect_routing("cosine_topk", x, memory, k)
    if isinstance(x, FeatureRows):
        return topk_softmax(_sparse_routing.cosines(x, memory, eps), k)
    if not op.native():
        return reference.cosine_topk(x, memory, k, eps)
    gate, index = op.call("cosine_topk", x, memory, k, eps)
    return gate, index


def expect_routing(name: str, x: Features, memory: Tensor, k: int) -> None:
    """Check the rows and embeddings of an operator that routes by cosine."""
    op.expect_dim(name, "memory", memory, 2, "[E, D]")
    if isinstance(x, FeatureRows):
        _sparse_rows.expect_rows(name, x, memory)
    else:
        op.expect_dim(name, "x", x, 2, "[N, D]")
        op.expect_floating(name, "x", x, memory=memory)
    if memory.shape[1] != x.shape[1]:  # a full check would be a twentieth of a one-row call
        op.expect_shape(name, "memory", memory, ("E", x.shape[1]), "to match 'x'")
    op.expect(1 <= k <= memory.shape[0], name, "k", lambda: f"in [1, E] = [1, {memory.shape[0]}]", k)


def _fake(x: Tensor, memory: Tensor, k: int, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], k), x.new_empty(x.shape[0], k, dtype=torch.int64)


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save what the gradient of x needs; ``cosine_topk_update`` has the same gradient."""
    x, memory, *_, ctx.eps = inputs
    ctx.save_for_backward(x, memory, output[1])
    ctx.mark_non_differentiable(*output[1:])


def backward(ctx: Any, grad_gate: Tensor, *_others: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradient of x, through the gates, and None for the other arguments."""
    x, memory, index = ctx.saved_tensors
    grad_x = torch.ops.gmoe.cosine_topk_grad_x(grad_gate, x, memory, index, ctx.eps)
    return grad_x, *[None] * (len(ctx.needs_input_grad) - 1)


def _fake_grad_x(grad_gate: Tensor, x: Tensor, memory: Tensor, index: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


# Routing stays in float32 under autocast, so that ties do not depend on the precision.
op.register("cosine_topk", _fake, backward=backward, setup_context=setup_context, autocast="float32")
op.register("cosine_topk_grad_x", _fake_grad_x)
