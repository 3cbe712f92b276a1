"""One layer of the vanilla mixture of experts that the RbM paper compares with (section 5.3).

N rows, E experts, K chosen experts a row, D in, F out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...ops import expert_plan
from ..dropout import dropout
from .expert_layer import ExpertConfig, ExpertLayer
from .projected_router import ProjectedRouter, Variant


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
        config: the layer's settings; the defaults of ``MoEConfig`` if None.
        options: fields of ``MoEConfig`` by keyword (num_experts, k, dropout, shared_dropout, load_balance,
            variant); they replace those of ``config``.

    Returns:
        forward(x [N, D]) gives (y [N, F], aux scalar). aux is 0 in evaluation.

    Raises:
        ValueError: an argument is out of its range.

    Examples:
        >>> layer = MoELayer(16, 8, proj_dim=16, num_experts=4, k=2)
        >>> y, aux = layer(torch.randn(10, 16))
    """

    router: ProjectedRouter

    def __init__(
        self, in_dim: int, out_dim: int, proj_dim: int, config: MoEConfig | None = None, **options: Any
    ) -> None:
        config = replace(config or MoEConfig(), **options)
        router = ProjectedRouter(in_dim, proj_dim, config.num_experts, config.k, config.variant)
        super().__init__(router, out_dim, config)
        self.load_balance = config.load_balance
        self.clones = config.variant == "paper"

    def start_routing(self) -> None:
        """End pre-training; the router keeps its initial weights."""
        if self.clones:
            self.experts.clone_first()
        self.pretraining = False

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        nothing = x_ND.new_zeros(())
        if self.pretraining:
            return (self._first_alone(x_ND) if self.clones else self._in_pieces(x_ND)), nothing
        routing = self.router(x_ND)
        aux = self.load_balance * (routing.importance_loss + routing.load_loss) if self.training else nothing
        return self._mix(x_ND, routing.gate, routing.index), aux

    def _in_pieces(self, x_ND: Tensor) -> Tensor:
        """Send each piece of consecutive rows to one expert."""
        rows = x_ND.shape[0]
        piece_N1 = (torch.arange(rows, device=x_ND.device) * self.num_experts // max(rows, 1))[:, None]
        dropped_ND = dropout(x_ND, self.dropout, self.training)
        y_NF: Tensor = self.experts(dropped_ND, expert_plan(piece_N1, self.num_experts), x_ND.new_ones(rows, 1))
        return y_NF
