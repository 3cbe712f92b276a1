"""expert_plan: who goes where, as a stable counting sort of the routed slots by expert."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..errors import GraphIndexError
from ..plan import ExpertPlan


def expert_plan(index: Tensor, num_experts: int) -> ExpertPlan:
    """Group the slots of a routing by expert.

    Slot s = row * k + choice goes to expert index[row, choice]; order lists the slots by expert, ascending within one.

    Args:
        index: [N, k] int64 or int32, 0 <= index < num_experts. A row may name an expert more than once.
        num_experts: E >= 1; experts that no row chose get an empty range.

    Returns:
        ExpertPlan(offsets int64 [E + 1], order int64 [N * k], num_rows N, k).

    Raises:
        ValueError: index is not 2-D, or num_experts < 1.
        TypeError: index is neither int64 nor int32.
        GraphIndexError: an entry of index is out of range.

    Deterministic: yes, bit for bit, for any number of threads.

    Example:
        >>> plan = expert_plan(torch.tensor([[2, 0], [0, 1]]), num_experts=3)
        >>> plan.offsets.tolist(), plan.order.tolist()
        ([0, 2, 3, 4], [1, 2, 3, 0])
    """
    if index.dim() != 2:
        raise ValueError(f"gmoe::expert_plan: expected 'index' of shape [N, k], got {list(index.shape)}")
    if index.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"gmoe::expert_plan: expected 'index' of dtype int64 or int32, got {index.dtype}")
    if num_experts < 1:
        raise ValueError(f"gmoe::expert_plan: expected 'num_experts' >= 1, got {num_experts}")
    bad = torch.nonzero((index.reshape(-1) < 0) | (index.reshape(-1) >= num_experts))
    if bad.numel():
        position = int(bad[0])
        raise GraphIndexError("gmoe::expert_plan", "index", position, int(index.reshape(-1)[position]), num_experts)
    return reference.expert_plan(index, num_experts)
