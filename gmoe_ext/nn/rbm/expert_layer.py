"""The layer that RbM and the vanilla mixture of experts share: linear experts behind a router.

N rows, E experts, K chosen experts a row, D in, F out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...ops import expert_plan
from ..dropout import dropout
from ..linear_experts import LinearExperts, learned_factor
from .memory_router import CosineMemoryRouter
from .projected_router import ProjectedRouter


@dataclass(frozen=True, kw_only=True)
class ExpertConfig:
    """Settings of the experts behind any router.

    Attributes:
        dropout: drop probability of expert inputs; the router always sees the whole row.
        shared_dropout: one mask per row; False draws one per row and chosen expert.
    """

    dropout: float = 0.0
    shared_dropout: bool = False


class ExpertLayer(nn.Module):
    """Linear experts of the rows that a router sends them, under one learned scale.

        y = exp(s) sum_r gate_r (W_e(r) x + b_e(r))   (RbM, eq. 1)

    s is learned and clamped at log 100.

    Attributes:
        pretraining: whether the experts are trained without the router and the scale, before routing starts.
        clones: whether all experts start routing as copies of expert 0.
        served_E: slots that each expert served at the last routed forward, int64 [E]; None before.
    """

    router: CosineMemoryRouter | ProjectedRouter
    clones = True

    def __init__(self, router: CosineMemoryRouter | ProjectedRouter, out_dim: int, config: ExpertConfig) -> None:
        super().__init__()
        if not 0.0 <= config.dropout < 1.0:
            raise ValueError(f"{type(self).__name__}: expected 'dropout' in [0, 1), got {config.dropout}")
        self.router = router
        self.experts = LinearExperts(router.dim, out_dim, router.num_experts)
        self.log_scale = nn.Parameter(torch.tensor(math.log(2.0)))
        self.num_experts, self.k = router.num_experts, router.k
        self.dropout, self.shared_dropout = config.dropout, config.shared_dropout
        self.pretraining = False
        self.served_E: Tensor | None = None

    def output_scale(self) -> Tensor:
        """Return exp(s), a scalar."""
        return learned_factor(self.log_scale)

    def input_scale(self) -> Tensor | None:
        """Return the factors of the experts' inputs [E, D], or None for 1."""
        return None

    def inactive_parameters(self) -> int:
        """Count the parameters of the E - k experts that do not serve a given row."""
        return (self.num_experts - self.k) * self.experts.out_dim * (self.experts.in_dim + 1)

    def _mix(self, x_ND: Tensor, gate_NK: Tensor, index_NK: Tensor) -> Tensor:
        rows, source_NK = self._expert_inputs(x_ND)
        plan = expert_plan(index_NK, self.num_experts)
        self.served_E = plan.offsets.diff()
        y_NF: Tensor = self.output_scale() * self.experts(rows, plan, gate_NK, self.input_scale(), source_NK)
        return y_NF

    def _expert_inputs(self, x_ND: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.training or self.dropout == 0.0:
            return x_ND, None
        if self.shared_dropout:
            return dropout(x_ND, self.dropout), None
        slots = torch.arange(x_ND.shape[0] * self.k, device=x_ND.device).view(-1, self.k)
        return dropout(x_ND.repeat_interleave(self.k, dim=0), self.dropout), slots

    def _first_alone(self, x_ND: Tensor) -> Tensor:
        return self.experts.first(dropout(x_ND, self.dropout, self.training))
