"""Routing by learned embeddings in a projected space, as the vanilla mixture of experts does.

N rows, E experts, K chosen experts a row, D router dimension, H dimension that rows are projected to.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import expect, expect_choice
from ...feature_rows import Features
from ...ops import topk_softmax
from ..gmoe.noisy_gate import Routing
from ..linear_experts import learned_factor, linear
from ..losses import squared_cv, sums

Variant = Literal["paper", "released_code"]


class ProjectedRouter(nn.Module):
    """Route each row to the k experts whose learned embeddings are nearest to its projection.

        gate = Softmax(TopK(t cos(q_e, W x + b)))   (RbM, eq. 2; X-MoE)

    q, t, W and b are learned by backpropagation.

    Args:
        dim: D.
        proj_dim: H.
        num_experts: E.
        k: experts per row, 1 <= k <= E.
        variant: "paper" has t = 1 and no b. "released_code" has b and a learned t that starts at 2, adds noise
            N(0, 1) / E to the scores in training, and takes the softmax over all E scores, so that the gates of the
            chosen experts sum to less than 1.
        eps: smallest norm.

    Attributes:
        over_all: whether the softmax is over all scores instead of the chosen ones.
        noisy: whether noise is added to the scores in training.

    Raises:
        ValueError: an argument is out of its range.

    Determinism: the noise comes from torch's generator, so ``torch.manual_seed`` fixes it.

    Examples:
        >>> routing = ProjectedRouter(dim=16, proj_dim=8, num_experts=4, k=2)(torch.randn(10, 16))
        >>> routing.gate.shape
        torch.Size([10, 2])
    """

    def __init__(
        self, dim: int, proj_dim: int, num_experts: int, k: int, variant: Variant = "paper", eps: float = 1e-12
    ) -> None:
        super().__init__()
        where = "ProjectedRouter"
        expect(proj_dim >= 1, where, "proj_dim", "of at least 1", proj_dim)
        expect(1 <= k <= num_experts, where, "k", f"in [1, num_experts = {num_experts}]", k)
        expect_choice(variant, get_args(Variant), where, "variant")
        released = variant == "released_code"
        self.dim, self.proj_dim, self.num_experts, self.k, self.eps = dim, proj_dim, num_experts, k, eps
        self.over_all = self.noisy = released
        self.projection = nn.Linear(dim, proj_dim, bias=released)
        self.embeddings = nn.Parameter(0.01 * torch.randn(num_experts, proj_dim))
        self.log_temperature = nn.Parameter(torch.tensor(math.log(2.0))) if released else None

    def temperature(self) -> Tensor | None:
        """Return t, or None for 1."""
        return None if self.log_temperature is None else learned_factor(self.log_temperature)

    def scores(self, x_ND: Features) -> Tensor:
        """Compute t cos(q_e, W x + b) [N, E]."""
        unit_NH = F.normalize(linear(x_ND, self.projection.weight, self.projection.bias), dim=1, eps=self.eps)
        cosine_NE = unit_NH @ F.normalize(self.embeddings, dim=1, eps=self.eps).T
        temperature = self.temperature()
        return cosine_NE if temperature is None else temperature * cosine_NE

    def forward(self, x_ND: Features) -> Routing:
        """Route the rows; the losses are of the experts' gate sums and of their numbers of rows."""
        score_NE = self.scores(x_ND)
        if self.noisy and self.training:
            score_NE = score_NE + torch.randn_like(score_NE) / self.num_experts
        gate_NK, index_NK = topk_softmax(score_NE, self.k)
        importance_E, served_E = sums(gate_NK, index_NK, self.num_experts)
        if self.over_all:
            share_NE = score_NE.softmax(dim=1)
            gate_NK, importance_E = share_NE.gather(1, index_NK), share_NE.sum(dim=0)
        return Routing(gate_NK, index_NK, squared_cv(importance_E), squared_cv(served_E))

    def extra_repr(self) -> str:
        return f"dim={self.dim}, proj_dim={self.proj_dim}, num_experts={self.num_experts}, k={self.k}"
