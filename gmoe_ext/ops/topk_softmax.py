"""topk_softmax: the gate of GMoE, a softmax over each row's k best experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from . import _dispatch as op


def topk_softmax(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Route each row to its k highest logits.

    The gate of GMoE (eq. 3); experts that were not chosen have gate 0:

        index_i = the k experts with the largest logits, in descending order
        gate_ir = exp(l_ir - l_i0) / sum_s exp(l_is - l_i0)        l_ir: logit of expert index_ir

    Args:
        logits: [N, E] one score per row and expert, float32 or bfloat16 (float64 in tests).
        k: experts per row, 1 <= k <= E.

    Returns:
        gate [N, k] in the dtype of logits, descending; index [N, k] int64. Equal logits go to the lower expert; NaN
        ranks highest, as in torch.sort.

    Raises:
        ValueError: logits is not 2-D, or k is out of [1, E].
        TypeError: logits is not floating point.

    Gradients: logits, zero for the experts that were not chosen.

    Deterministic: yes, bit for bit, for any number of threads.

    Examples:
        >>> gate, index = topk_softmax(torch.tensor([[0.0, 2.0, 2.0, 1.0]]), k=2)
        >>> index.tolist(), gate.tolist()
        ([[1, 2]], [[0.5, 0.5]])
    """
    op.expect_dim("topk_softmax", "logits", logits, 2, "[N, E]")
    op.expect_dtype("topk_softmax", "logits", logits, op.FLOATING)
    op.expect(1 <= k <= logits.shape[1], "topk_softmax", "k", lambda: f"in [1, E] = [1, {logits.shape[1]}]", k)
    if not op.native():
        return reference.topk_softmax(logits, k)
    gate, index = op.call("topk_softmax", logits, k)
    return gate, index


def _fake(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (logits.shape[0], k)
    return logits.new_empty(shape), logits.new_empty(shape, dtype=torch.int64)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.num_experts = inputs[0].shape[1]
    ctx.save_for_backward(*output)


def _backward(ctx: Any, grad_gate: Tensor, _grad_index: Tensor | None) -> tuple[Tensor, None]:
    gate, index = ctx.saved_tensors
    return torch.ops.gmoe.topk_softmax_grad_logits(grad_gate, gate, index, ctx.num_experts), None


def _fake_grad_logits(grad_gate: Tensor, gate: Tensor, index: Tensor, num_experts: int) -> Tensor:
    return gate.new_empty(gate.shape[0], num_experts)


# Routing stays in float32 under autocast, so that ties do not depend on the precision.
op.register("topk_softmax", _fake, backward=_backward, setup_context=_setup_context, autocast="float32")
op.register("topk_softmax_grad_logits", _fake_grad_logits)
