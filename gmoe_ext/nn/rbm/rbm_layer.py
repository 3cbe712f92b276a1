"""One layer of a Routing-by-Memory network (RbM, eq. 5) with its share of the loss (eq. 13).

N rows, E experts, K chosen experts a row, D in, F out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...errors import expect
from ...feature_rows import Features
from ..layer import configured
from ..linear_experts import learned_factor
from ..losses import commitment, load_balance, self_similarity
from .memory_router import CosineMemoryRouter, MemoryRouterConfig, MemoryRouting
from .moe_layer import ExpertConfig, ExpertLayer


@dataclass(frozen=True, kw_only=True)
class RbMConfig(MemoryRouterConfig, ExpertConfig):
    """Settings of an RbM layer: those of its router and of its experts, and the following.

    Attributes:
        input_attention: learn att [E, D], which starts at log 1.1; without it the factor is 1.
        commitment: weight alpha of eq. 6.
        self_similarity: weight of eq. 7. A "buffer" memory takes its step in ``RbMLayer.after_step``, a "parameter"
            memory gets the gradient of the loss.
        load_balance: weight of eq. 8.
        gate_gradient: let the task's gradient flow through the gates to the input in training; otherwise only that of
            the losses above does. In evaluation derivatives are those of the whole layer.
    """

    input_attention: bool = True
    commitment: float = 0.05
    self_similarity: float = 0.01
    load_balance: float = 0.01
    gate_gradient: bool = False


class RbMLayer(ExpertLayer):
    """Mixture of linear experts routed by memory.

        y = exp(s) sum_r gate_r (W_e(r) (exp(att_e(r)) * x) + b_e(r))   (RbM, eq. 5)

    att and s are learned and clamped at log 100. In pre-training all rows go to expert 0, without scales;
    ``start_routing`` ends it.

    The memory moves in ``after_step`` alone, which the training loop calls after each step of the optimizer.

    Args:
        in_dim: D.
        out_dim: F.
        settings: an ``RbMConfig``, or its ``num_experts`` and ``k``.
        options: fields of ``RbMConfig`` by keyword.

    Returns:
        forward(x [N, D]) gives (y [N, F], aux scalar). aux is 0 in evaluation.

    Raises:
        ValueError: an argument is out of its range.

    Examples:
        >>> layer = RbMLayer(16, 8, num_experts=4, k=2)
        >>> y, aux = layer(torch.randn(10, 16))
        >>> (y.square().mean() + aux).backward()
        >>> optimizer.step()
        >>> layer.after_step(learning_rate=0.01)
    """

    router: CosineMemoryRouter

    def __init__(self, in_dim: int, out_dim: int, *settings: Any, **options: Any) -> None:
        config = configured(RbMConfig, ("num_experts", "k"), settings, options)
        balanced, weight = config.num_experts > 1, config.load_balance
        expect(balanced or weight <= 0, "RbMLayer", "load_balance", "of 0, since a balance needs two experts", weight)
        super().__init__(CosineMemoryRouter(in_dim, config), out_dim, config)
        attention = torch.full((config.num_experts, in_dim), math.log(1.1))
        self.log_attention = nn.Parameter(attention) if config.input_attention else None
        self.config = config
        self._weight_version = 0

    def input_scale(self) -> Tensor | None:
        """Return exp(att) [E, D], or None without input attention."""
        return None if self.log_attention is None else learned_factor(self.log_attention)

    def after_step(self, learning_rate: float, group: dist.ProcessGroup | None = None) -> None:
        """Move the memory, once per step of the optimizer: towards the rows served since the last call (eq. 4),
        and a "buffer" also down its self-similarity loss (eq. 7).

        Args:
            learning_rate: of the step down the loss; a "parameter" memory gets that from the optimizer.
            group: the ranks that train this layer together, whose rows count as one batch; None means all.
        """
        self.router.after_step(group)
        weight = self.config.self_similarity
        if weight > 0 and not self.pretraining and not isinstance(self.router.memory, nn.Parameter):
            self.router.spread_(learning_rate * weight)

    def start_routing(self, centres_ED: Tensor) -> None:
        """End pre-training: make all experts copies of expert 0 and the k-means centres the memory."""
        self.experts.clone_first()
        self.router.set_memory(centres_ED)
        self.pretraining = False

    def forward(self, x_ND: Features) -> tuple[Tensor, Tensor]:
        if self.pretraining:
            return self._first_alone(x_ND), x_ND.new_zeros(())
        if self.training and not torch.compiler.is_compiling():
            version = self.experts.weight._version
            if version != self._weight_version:  # the optimizer has stepped since the last forward
                self.router.expect_moved()
            self._weight_version = version
        routing = self.router(x_ND)
        return self._routed(x_ND, routing), self._aux(x_ND, routing) if self.training else x_ND.new_zeros(())

    @torch.no_grad()
    def follow_(self, x_ND: Features, copies_N: Tensor | None = None) -> Tensor:
        """Move the memory at once, row j counting copies_N[j] times; return y [N, F]."""
        routing = self.router.route(x_ND)
        y_NF = self._routed(x_ND, routing)
        self.router.follow_(x_ND, routing, copies_N)
        return y_NF

    def _routed(self, x_ND: Features, routing: MemoryRouting) -> Tensor:
        stopped = self.training and not self.config.gate_gradient
        return self._mix(x_ND, routing.gate.detach() if stopped else routing.gate, routing.index)

    def _aux(self, x_ND: Features, routing: MemoryRouting) -> Tensor:
        config, aux = self.config, x_ND.new_zeros(())
        if config.commitment > 0:
            aux = aux + config.commitment * commitment(x_ND, routing.memory, routing.gate, routing.index)
        if config.load_balance > 0:
            aux = aux + config.load_balance * load_balance(routing.gate, routing.index, self.num_experts)
        if config.self_similarity > 0 and isinstance(self.router.memory, nn.Parameter):
            aux = aux + config.self_similarity * self_similarity(self.router.memory)
        return aux
