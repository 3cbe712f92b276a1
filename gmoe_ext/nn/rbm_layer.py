"""One layer of a Routing-by-Memory network (RbM, eq. 5) with its share of the loss (eq. 13).

N rows, E experts, K chosen experts a row, D in, F out.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from .losses.memory import commitment, load_balance, self_similarity
from .mixture import MixtureLayer
from .routers import CosineMemoryRouter, MemoryRouting
from .scales import learnt_factor


class RbMLayer(MixtureLayer):
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

    router: CosineMemoryRouter

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
        if load_balance > 0 and num_experts < 2:
            raise ValueError("RbMLayer: expected 'load_balance' = 0 with a single expert; a balance needs two")
        router = CosineMemoryRouter(
            in_dim, num_experts, k, ema_rate, annealing, annealing_epochs, normalize_inputs, memory
        )
        super().__init__(router, out_dim, dropout, shared_dropout)
        self.log_attention = nn.Parameter(torch.full((num_experts, in_dim), math.log(1.1))) if input_attention else None
        self.commitment, self.self_similarity, self.load_balance = commitment, self_similarity, load_balance
        self.gate_gradient = gate_gradient

    def input_scale(self) -> Tensor | None:
        """exp(att) [E, D], or None without input attention."""
        return None if self.log_attention is None else learnt_factor(self.log_attention)

    def inactive_parameters(self) -> int:
        """Parameters of the E - k experts that do not serve a given row."""
        attention = 0 if self.log_attention is None else self.experts.in_dim
        return super().inactive_parameters() + (self.num_experts - self.k) * attention

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
            return self._first_alone(x_ND), x_ND.new_zeros(())
        routing = self.router(x_ND)
        return self._routed(x_ND, routing), self._aux(x_ND, routing) if self.training else x_ND.new_zeros(())

    @torch.no_grad()
    def follow_(self, x_ND: Tensor, copies_N: Tensor | None = None) -> Tensor:
        """Let the memory follow rows as in a training forward, row j counting copies_N[j] times; returns y [N, F]."""
        routing = self.router.route(x_ND)
        y_NF = self._routed(x_ND, routing)
        self.router.follow_(x_ND, routing, copies_N)
        return y_NF

    def _routed(self, x_ND: Tensor, routing: MemoryRouting) -> Tensor:
        return self._mix(x_ND, routing.gate if self.gate_gradient else routing.gate.detach(), routing.index)

    def _aux(self, x_ND: Tensor, routing: MemoryRouting) -> Tensor:
        aux = x_ND.new_zeros(())
        if self.commitment > 0:
            aux = aux + self.commitment * commitment(x_ND, routing.memory, routing.gate, routing.index)
        if self.load_balance > 0:
            aux = aux + self.load_balance * load_balance(routing.gate, routing.index, self.num_experts)
        if self.self_similarity > 0 and isinstance(self.router.memory, nn.Parameter):
            aux = aux + self.self_similarity * self_similarity(self.router.memory)
        return aux
