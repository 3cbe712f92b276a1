"""Layers of linear experts behind a router: what RbM shares with it, and the vanilla mixture of experts.

The vanilla mixture is the one that the RbM paper compares with (section 5.3).
N rows, E experts, K chosen experts a row, D in, F out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import expect
from ...feature_rows import FeatureRows, Features
from ...ops import expert_plan
from ..dropout import drop_features
from ..layer import configured
from ..linear_experts import LinearExperts, learned_factor
from .memory_router import CosineMemoryRouter
from .projected_router import ProjectedRouter, Variant


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
        expect(0.0 <= config.dropout < 1.0, type(self).__name__, "dropout", "in [0, 1)", config.dropout)
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
        width_in, width_out = self.experts.in_dim, self.experts.out_dim
        factors = 0 if self.input_scale() is None else width_in
        return (self.num_experts - self.k) * (width_out * (width_in + 1) + factors)

    def _mix(self, x_ND: Features, gate_NK: Tensor, index_NK: Tensor) -> Tensor:
        plan = expert_plan(index_NK, self.num_experts)
        self.served_E = plan.offsets.diff()
        rows, source_NK = x_ND, None
        if self.training and self.dropout > 0.0:
            rows = drop_features(x_ND, self.dropout, None if self.shared_dropout else self.k)
            if not self.shared_dropout:
                source_NK = torch.arange(index_NK.numel(), device=index_NK.device).view_as(index_NK)
        if isinstance(rows, FeatureRows):
            y_NF = self.experts.of_features(rows, index_NK, gate_NK, self.input_scale())
        else:
            y_NF = self.experts(rows, plan, gate_NK, self.input_scale(), source_NK)
        return self.output_scale() * y_NF

    def _first_alone(self, x_ND: Features) -> Tensor:
        return self.experts.first(self._dropped(x_ND))

    def _dropped(self, x_ND: Features) -> Features:
        return drop_features(x_ND, self.dropout) if self.training else x_ND


@dataclass(frozen=True, kw_only=True)
class MoEConfig(ExpertConfig):
    """Settings of a vanilla mixture-of-experts layer: those of its experts, and the following.

    Attributes:
        num_experts: E.
        k: experts per row, 1 <= k <= E.
        load_balance: weight of squared_cv(gate sums) + squared_cv(rows served). The second term has no gradient.
        variant: of the router and of pre-training. "paper" sends all rows of pre-training to expert 0, which is then
            cloned. "released_code" cuts a batch into E pieces, sends piece e to expert e, and clones nothing.
    """

    num_experts: int = 4
    k: int = 3
    load_balance: float = 0.01
    variant: Variant = "paper"


class MoELayer(ExpertLayer):
    """Mixture of linear experts routed by learned embeddings.

        y = exp(s) sum_r gate_r (W_e(r) x + b_e(r))   (RbM, eq. 1)

    The gates are those of ``ProjectedRouter`` (eq. 2). In pre-training rows go where ``variant`` says,
    without router and scale; ``start_routing`` ends it.

    Args:
        in_dim: D.
        out_dim: F.
        proj_dim: dimension in which rows are compared with the experts' embeddings.
        settings: a ``MoEConfig``, or its ``num_experts`` and ``k``.
        options: fields of ``MoEConfig`` by keyword.

    Returns:
        forward(x [N, D]) gives (y [N, F], aux scalar). aux is 0 in evaluation.

    Raises:
        ValueError: an argument is out of its range.

    Examples:
        >>> layer = MoELayer(16, 8, proj_dim=16, num_experts=4, k=2)
        >>> y, aux = layer(torch.randn(10, 16))
    """

    router: ProjectedRouter

    def __init__(self, in_dim: int, out_dim: int, proj_dim: int, *settings: Any, **options: Any) -> None:
        config = configured(MoEConfig, ("num_experts", "k"), settings, options)
        router = ProjectedRouter(in_dim, proj_dim, config.num_experts, config.k, config.variant)
        super().__init__(router, out_dim, config)
        self.load_balance = config.load_balance
        self.clones = config.variant == "paper"

    def start_routing(self) -> None:
        """End pre-training; the router keeps its initial weights."""
        if self.clones:
            self.experts.clone_first()
        self.pretraining = False

    def forward(self, x_ND: Features) -> tuple[Tensor, Tensor]:
        nothing = x_ND.new_zeros(())
        if self.pretraining:
            return (self._first_alone(x_ND) if self.clones else self._in_pieces(x_ND)), nothing
        routing = self.router(x_ND)
        aux = self.load_balance * (routing.importance_loss + routing.load_loss) if self.training else nothing
        return self._mix(x_ND, routing.gate, routing.index), aux

    def _in_pieces(self, x_ND: Features) -> Tensor:
        """Send each piece of consecutive rows to one expert."""
        rows = x_ND.shape[0]
        piece_N1 = (torch.arange(rows, device=x_ND.device) * self.num_experts // max(rows, 1))[:, None]
        dropped_ND, gate_N1 = self._dropped(x_ND), torch.ones_like(piece_N1, dtype=self.experts.weight.dtype)
        if isinstance(dropped_ND, FeatureRows):
            return self.experts.of_features(dropped_ND, piece_N1, gate_N1)
        y_NF: Tensor = self.experts(dropped_ND, expert_plan(piece_N1, self.num_experts), gate_N1)
        return y_NF
