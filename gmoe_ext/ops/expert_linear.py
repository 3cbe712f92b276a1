"""expert_linear: one linear layer per expert, applied only to the rows routed to it."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from ..plan import ExpertPlan


def expert_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    plan: ExpertPlan,
    gate: Tensor | None = None,
    source: Tensor | None = None,
) -> Tensor:
    """Apply to each routed row the linear layer of its expert and combine a row's k results by its gates.

    y_i = sum_r gate_ir (W_e x_s + b_e),  e = index_ir, s = source_ir   (GMoE, eq. 2; RbM, eq. 1)

    Args:
        x: [R, Din] rows, float32 or bfloat16 (float64 in tests).
        weight: [E, Dout, Din] one matrix per expert, same dtype as x.
        bias: [E, Dout] or None.
        plan: from :func:`expert_plan` of an index [N, k] with num_experts E.
        gate: [N, k] weights of the sum; None keeps the k results apart.
        source: [N, k] int64 or int32, the row of x that slot (i, r) reads, 0 <= source < R;
            None reads row i, which needs R = N.

    Returns:
        y [N, Dout] in x's dtype, accumulated in float32 (float64 for float64); [N, k, Dout] without gate.

    Gradients: x, weight, bias and gate, each computed only when needed.

    Raises:
        ValueError: shapes do not fit each other.
        TypeError: dtypes differ, or source is no integer tensor.
        GraphIndexError: an entry of source or of the plan is out of range.

    Deterministic: yes, forward and backward, bit for bit, for any number of threads.

    Example:
        >>> plan = expert_plan(torch.tensor([[0, 1]]), num_experts=2)
        >>> weight = torch.stack([torch.eye(2), 2 * torch.eye(2)])
        >>> expert_linear(torch.ones(1, 2), weight, None, plan, gate=torch.tensor([[0.5, 0.5]])).tolist()
        [[1.5, 1.5]]
    """
    return reference.expert_linear(x, weight, bias, plan, gate, source)
