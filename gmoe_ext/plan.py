"""ExpertPlan: the slots that each expert serves."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ExpertPlan(NamedTuple):
    """Slots grouped by expert, made by ``gmoe_ext.ops.expert_plan``.

    A slot is one (row, choice) pair of a routing ``index[N, k]``; its id is ``row * k + choice``.

    Attributes:
        offsets: int64 [E + 1]; expert e serves the slots ``order[offsets[e]:offsets[e + 1]]``.
        order: int64 [N * k]; slot ids grouped by expert, ascending within an expert.
        num_rows: N.
        k: choices per row.
    """

    offsets: Tensor
    order: Tensor
    num_rows: int
    k: int

    @property
    def num_experts(self) -> int:
        """Number of experts, E."""
        return self.offsets.numel() - 1
