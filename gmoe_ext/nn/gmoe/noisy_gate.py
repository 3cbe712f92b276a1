"""The gate that sends nodes to experts, and the (node, expert) slots that a layer computes for it.

Shapes: N nodes, E experts, K chosen, D input features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import ops
from ...errors import expect
from ...feature_rows import Features
from ...plan import ExpertPlan
from ..linear_experts import linear
from ..losses import squared_cv, sums

# Floor of the noise's standard deviation, so that exploration never stops (the released code's value).
MIN_SIGMA = 0.01


class Routing(NamedTuple):
    """The experts chosen for each node, and how unevenly they are used.

    Attributes:
        gate: [N, k] weights, descending.
        index: [N, k] int64, the chosen experts.
        importance_loss: scalar, unevenness of the experts' gate sums (GMoE, eq. 5).
        load_loss: scalar, unevenness of their numbers of nodes, expected under the gate's noise (GMoE, eqs. 6-8).
    """

    gate: Tensor
    index: Tensor  # type: ignore[assignment]  # the field hides tuple.index on purpose
    importance_loss: Tensor
    load_loss: Tensor


class Slots(NamedTuple):
    """The (node, expert) pairs that a layer computes: the chosen ones, or all of them.

    Attributes:
        index: [N, K] int64, the expert of each slot.
        plan: the same slots grouped by expert.
        num_experts: E.
        every: True if slot r of each node is expert r: K = E and no expert is left out.
    """

    index: Tensor  # type: ignore[assignment]  # the field hides tuple.index on purpose
    plan: ExpertPlan
    num_experts: int
    every: bool

    @classmethod
    def chosen(cls, index_NK: Tensor, num_experts: int) -> Slots:
        """Make the slots of a routing."""
        return cls(index_NK, ops.expert_plan(index_NK, num_experts), num_experts, every=False)

    @classmethod
    def all(cls, num_nodes: int, num_experts: int, device: torch.device) -> Slots:
        """Make the slots that run every expert on every node."""
        experts = torch.arange(num_experts, device=device)
        offsets = torch.arange(num_experts + 1, device=device) * num_nodes
        order = torch.arange(num_nodes * num_experts, device=device).view(num_nodes, num_experts).T.reshape(-1)
        plan = ExpertPlan(offsets, order, num_nodes, num_experts)
        return cls(experts.expand(num_nodes, num_experts), plan, num_experts, every=True)


class NoisyTopKGate(nn.Module):
    """Send each node to its k best experts by a noisy linear score.

    GMoE, eqs. 3 and 4, with noise in training only:

        G(h_i) = Softmax(TopK(Q(h_i), k))
        Q(h_i) = h_i W_g + noise * sigma(h_i),  sigma(h_i) = Softplus(h_i W_n) + 0.01

    Both weights start at zero, so that training begins with a uniformly random choice.

    Args:
        dim: D, features of a node.
        num_experts: E.
        k: experts per node, 1 <= k <= E.

    Raises:
        ValueError: k is out of [1, E].

    Determinism: the noise comes from torch's generator, so ``torch.manual_seed`` fixes it.

    Examples:
        >>> routing = NoisyTopKGate(16, num_experts=4, k=2)(torch.randn(10, 16))
        >>> routing.gate.shape
        torch.Size([10, 2])
    """

    def __init__(self, dim: int, num_experts: int, k: int) -> None:
        super().__init__()
        expect(1 <= k <= num_experts, "NoisyTopKGate", "k", f"in [1, {num_experts}] (num_experts)", k)
        self.dim, self.num_experts, self.k = dim, num_experts, k
        self.weight_gate = nn.Parameter(torch.zeros(num_experts, dim))
        self.weight_noise = nn.Parameter(torch.zeros(num_experts, dim))

    def forward(self, x: Features) -> Routing:
        """Route the rows of ``x`` [N, D]."""
        clean_NE = linear(x, self.weight_gate)
        if self.training:
            sigma_NE = F.softplus(linear(x, self.weight_noise)) + MIN_SIGMA
            noise_NE = torch.randn_like(clean_NE)
            gate_NK, index_NK, importance_E, load_E = ops.noisy_topk(clean_NE, sigma_NE, noise_NE, self.k)
        else:
            gate_NK, index_NK = ops.topk_softmax(clean_NE, self.k)
            importance_E, load_E = sums(gate_NK, index_NK, self.num_experts)
        return Routing(gate_NK, index_NK, squared_cv(importance_E), squared_cv(load_E))

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_experts={self.num_experts}, k={self.k}"
