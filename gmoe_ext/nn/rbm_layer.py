"""One layer of a Routing-by-Memory network (RbM, eq. 5) with its share of the loss (eq. 13).

N rows, E experts, K chosen experts a row, D in, F out.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from ..ops import expert_plan
from .dropout import dropout
from .experts import LinearExperts
from .losses.memory import commitment, load_balance, self_similarity
from .routers import CosineMemoryRouter, MemoryRouting

# exp of a learnt scale never exceeds this factor, so that one bad step cannot overflow the layer.
MAX_LOG_SCALE = math.log(100.0)


class RbMLayer(nn.Module):
    """Mixture of linear experts routed by memory.

    y = exp(s) sum_r gate_r (W_e(r) (exp(att_e(r)) * x) + b_e(r))   (RbM, eq. 5), att and s learnt, clamped at log 100

    Args:
        in_dim: D.
        out_dim: F.
        num_experts: E.
        k: experts per row.
        dropout: drop probability of expert inputs; the router always sees the whole row.
        input_attention: learn att [E, D], started at log 1.1; without it the factor is 1.
        commitment: weight alpha of eq. 6.
        self_similarity: weight of eq. 7; a "buffer" memory takes it by :meth:`spread_`, a "parameter" by the loss.
        load_balance: weight of eq. 8.
        gate_gradient: let the task's gradient flow through the gates to the input; else only the losses above do.
        shared_dropout: one mask per row; False draws one per row and chosen expert.
        ema_rate, annealing, annealing_epochs, normalize_inputs, memory: see :class:`CosineMemoryRouter`.

    Returns:
        forward(x [N, D]) gives (y [N, F], aux scalar). aux is 0 in evaluation.

    Attributes:
        pretraining: all rows go to expert 0, without scales; see :meth:`start_routing`.
        served_E: slots that each expert served at the last routed forward, int64 [E]; None before.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> layer = RbMLayer(16, 8, num_experts=4, k=2)
        >>> y, aux = layer(torch.randn(10, 16))
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        num_experts: int,
        k: int,
        dropout: float = 0.0,
        input_attention: bool = True,
        commitment: float = 0.05,
        self_similarity: float = 0.01,
        load_balance: float = 0.01,
        gate_gradient: bool = False,
        shared_dropout: bool = False,
        ema_rate: float = 0.9,
        annealing: float = 0.0,
        annealing_epochs: int = 200,
        normalize_inputs: bool = True,
        memory: Literal["buffer", "parameter"] = "buffer",
    ) -> None:
        super().__init__()
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"RbMLayer: expected 'dropout' in [0, 1), got {dropout}")
        if load_balance > 0 and num_experts < 2:
            raise ValueError("RbMLayer: expected 'load_balance' = 0 with a single expert; a balance needs two")
        self.router = CosineMemoryRouter(
            in_dim, num_experts, k, ema_rate, annealing, annealing_epochs, normalize_inputs, memory
        )
        self.experts = LinearExperts(in_dim, out_dim, num_experts)
        self.log_scale = nn.Parameter(torch.tensor(math.log(2.0)))
        self.log_attention = nn.Parameter(torch.full((num_experts, in_dim), math.log(1.1))) if input_attention else None
        self.num_experts, self.k, self.dropout = num_experts, k, dropout
        self.commitment, self.self_similarity, self.load_balance = commitment, self_similarity, load_balance
        self.gate_gradient, self.shared_dropout = gate_gradient, shared_dropout
        self.pretraining = False
        self.served_E: Tensor | None = None

    def input_scale(self) -> Tensor | None:
        """exp(att) [E, D], or None without input attention."""
        return None if self.log_attention is None else self.log_attention.clamp(max=MAX_LOG_SCALE).exp()

    def output_scale(self) -> Tensor:
        """exp(s), a scalar."""
        return self.log_scale.clamp(max=MAX_LOG_SCALE).exp()

    def inactive_parameters(self) -> int:
        """Parameters of the E - k experts that do not serve a given row."""
        per_expert = self.experts.out_dim * (self.experts.in_dim + 1)
        per_expert += 0 if self.log_attention is None else self.experts.in_dim
        return (self.num_experts - self.k) * per_expert

    def spread_(self, learning_rate: float) -> None:
        """The memory's own step along its self-similarity gradient; nothing for a "parameter" memory."""
        if self.self_similarity > 0 and not self.pretraining and not isinstance(self.router.memory, nn.Parameter):
            self.router.spread_(learning_rate * self.self_similarity)

    def start_routing(self, centres_ED: Tensor) -> None:
        """End of pre-training: all experts become expert 0, the memory becomes the k-means centres."""
        self.experts.clone_first()
        self.router.set_memory(centres_ED)
        self.pretraining = False

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        if self.pretraining:
            dropped_ND = dropout(x_ND, self.dropout, self.training)
            return self.experts.first(dropped_ND), x_ND.new_zeros(())
        routing = self.router(x_ND)
        return self._mix(x_ND, routing), self._aux(x_ND, routing) if self.training else x_ND.new_zeros(())

    @torch.no_grad()
    def follow_(self, x_ND: Tensor, copies_N: Tensor | None = None) -> Tensor:
        """Let the memory follow rows as in a training forward, row j counting copies_N[j] times; returns y [N, F]."""
        routing = self.router.route(x_ND)
        y_NF = self._mix(x_ND, routing)
        self.router.follow_(x_ND, routing, copies_N)
        return y_NF

    def _mix(self, x_ND: Tensor, routing: MemoryRouting) -> Tensor:
        rows, source_NK = self._expert_inputs(x_ND)
        gate_NK = routing.gate if self.gate_gradient else routing.gate.detach()
        plan = expert_plan(routing.index, self.num_experts)
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

    def _aux(self, x_ND: Tensor, routing: MemoryRouting) -> Tensor:
        aux = x_ND.new_zeros(())
        if self.commitment > 0:
            aux = aux + self.commitment * commitment(x_ND, routing.memory, routing.gate, routing.index)
        if self.load_balance > 0:
            aux = aux + self.load_balance * load_balance(routing.gate, routing.index, self.num_experts)
        if self.self_similarity > 0 and isinstance(self.router.memory, nn.Parameter):
            aux = aux + self.self_similarity * self_similarity(self.router.memory)
        return aux
