"""expert_plan: stable counting sort of routed slots by expert."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..plan import ExpertPlan
from . import _dispatch as op


def expert_plan(index: Tensor, num_experts: int) -> ExpertPlan:
    """Group the slots of a routing by expert.

    A slot is one (row, choice) pair with id row * k + choice. This is a stable counting sort of the slots by expert:

        offsets_e = number of slots with an expert below e
        order[offsets_e : offsets_(e+1)] = the slots of expert e, ascending

    ``order`` equals ``torch.argsort(index.flatten(), stable=True)``. Operators that take a plan check it again, so a
    damaged plan raises and is never followed.

    Args:
        index: [N, k] int64 or int32, 0 <= index < num_experts. A row may name an expert more than once.
        num_experts: E >= 1; experts that no row chose get an empty range.

    Returns:
        ExpertPlan(offsets int64 [E + 1], order int64 [N * k], num_rows N, k). No gradient: everything is an integer.

    Raises:
        ValueError: index is not [N, k] with k >= 1, or num_experts < 1.
        TypeError: index is neither int64 nor int32.
        GraphIndexError: an entry of index is out of range; names the first one.

    Deterministic: yes, exact, for any number of threads.

    Examples:
        >>> plan = expert_plan(torch.tensor([[2, 0], [0, 1]]), num_experts=3)
        >>> plan.offsets.tolist(), plan.order.tolist()
        ([0, 2, 3, 4], [1, 2, 3, 0])
    """
    if not op.checks_inside(index):
        _check(index, num_experts)
    if not op.native():
        op.expect_index("expert_plan", "index", index, num_experts)
        return reference.expert_plan(index, num_experts)
    try:
        offsets, order = op.call("expert_plan", index, num_experts)
    except RuntimeError:
        _check(index, num_experts)
        raise
    return ExpertPlan(offsets, order, *index.shape)


def _check(index: Tensor, num_experts: int) -> None:
    op.expect_dim("expert_plan", "index", index, 2, "[N, k]")
    op.expect_dtype("expert_plan", "index", index, op.INTEGER)
    op.expect(index.shape[1] >= 1, "expert_plan", "index", "of shape [N, k] with k >= 1", list(index.shape))
    op.expect(num_experts >= 1, "expert_plan", "num_experts", ">= 1", num_experts)


def _fake(index: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    offsets = index.new_empty(num_experts + 1, dtype=torch.int64)
    return offsets, index.new_empty(index.numel(), dtype=torch.int64)


op.register("expert_plan", _fake)
