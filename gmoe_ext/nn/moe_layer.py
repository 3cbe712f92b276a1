"""One layer of the vanilla mixture of experts that the RbM paper compares with (section 5.3).

N rows, E experts, K chosen experts a row, D in, F out.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..ops import expert_plan
from .dropout import dropout
from .mixture import MixtureLayer
from .routers import ProjectedRouter


class MoELayer(MixtureLayer):
    """Mixture of linear experts routed by learnt embeddings.

    y = exp(s) sum_r gate_r (W_e(r) x + b_e(r))   (RbM, eq. 1), gates of :class:`ProjectedRouter` (eq. 2)

    Args:
        in_dim: D.
        out_dim: F.
        proj_dim: dimension in which rows are compared with the experts' embeddings.
        num_experts: E.
        k: experts per row.
        dropout: drop probability of expert inputs; the router always sees the whole row.
        load_balance: weight of squared_cv(sums of the gates) + squared_cv(rows served). The second is a constant to
            the optimizer.
        shared_dropout: one mask per row; False draws one per row and chosen expert.
        variant: of the router and of pre-training. "paper": rows of pre-training go to expert 0, which is then cloned.
            "released_code": a batch is cut into E pieces, piece e goes to expert e, and nothing is cloned.

    Returns:
        forward(x [N, D]) gives (y [N, F], aux scalar). aux is 0 in evaluation.

    Attributes:
        pretraining: rows go where ``variant`` says, without router and scale; see :meth:`start_routing`.
        served_E: slots that each expert served at the last routed forward, int64 [E]; None before.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> layer = MoELayer(16, 8, proj_dim=16, num_experts=4, k=2)
        >>> y, aux = layer(torch.randn(10, 16))
    """

    router: ProjectedRouter

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        proj_dim: int,
        num_experts: int,
        k: int,
        dropout: float = 0.0,
        load_balance: float = 0.01,
        shared_dropout: bool = False,
        variant: Literal["paper", "released_code"] = "paper",
    ) -> None:
        super().__init__(ProjectedRouter(in_dim, proj_dim, num_experts, k, variant), out_dim, dropout, shared_dropout)
        self.load_balance = load_balance
        self.clones = variant == "paper"

    def start_routing(self) -> None:
        """End of pre-training; the router starts as it was drawn."""
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
        """Consecutive rows to one expert each."""
        rows = x_ND.shape[0]
        piece_N1 = (torch.arange(rows, device=x_ND.device) * self.num_experts // max(rows, 1))[:, None]
        dropped_ND = dropout(x_ND, self.dropout, self.training)
        y_NF: Tensor = self.experts(dropped_ND, expert_plan(piece_N1, self.num_experts), x_ND.new_ones(rows, 1))
        return y_NF
