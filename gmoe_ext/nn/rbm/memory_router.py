"""Routing by memory: expert embeddings that follow the rows they serve.

N rows, E experts, K chosen experts a row, D router dimension.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import expect, expect_choice
from ...ops import cosine_topk, cosine_topk_update, memory_update
from ..losses import self_similarity


@dataclass(frozen=True, kw_only=True)
class MemoryRouterConfig:
    """Settings of a ``CosineMemoryRouter``.

    Attributes:
        num_experts: E.
        k: experts per row, 1 <= k <= E.
        ema_rate: lambda_0, share of the old embedding kept at each training forward.
        annealing: Delta in [0, 1); 0 keeps the rate constant.
        annealing_epochs: T, epochs after which the rate has moved a fraction Delta of the way to 1.
        normalize_inputs: average the directions of rows; False averages the rows themselves.
        memory: "buffer" is moved by the average and by ``CosineMemoryRouter.spread_`` alone; "parameter" is also
            seen by the optimizer.
    """

    num_experts: int = 4
    k: int = 3
    ema_rate: float = 0.9
    annealing: float = 0.0
    annealing_epochs: int = 200
    normalize_inputs: bool = True
    memory: Literal["buffer", "parameter"] = "buffer"

    def __post_init__(self) -> None:
        where, last = "CosineMemoryRouter", self.num_experts
        expect(1 <= self.k <= last, where, "k", f"in [1, num_experts = {last}]", self.k)
        expect(0.0 <= self.ema_rate <= 1.0, where, "ema_rate", "in [0, 1]", self.ema_rate)
        expect(0.0 <= self.annealing < 1.0, where, "annealing", "in [0, 1)", self.annealing)
        expect(self.annealing_epochs >= 1, where, "annealing_epochs", "of at least 1", self.annealing_epochs)
        expect_choice(self.memory, ("buffer", "parameter"), where, "memory")


class MemoryRouting(NamedTuple):
    """The decision of a ``CosineMemoryRouter`` for a batch.

    Attributes:
        gate: [N, k] routing weights, descending; their gradient flows to the router's input.
        index: int64 [N, k] expert ids.
        memory: [E, D] the embeddings that decided, before this batch moved them; no gradient.
    """

    gate: Tensor
    index: Tensor  # type: ignore[assignment]  # the field hides tuple.index on purpose
    memory: Tensor


class CosineMemoryRouter(nn.Module):
    """Route each row to its k nearest expert embeddings; in training the embeddings follow their rows.

    The gate is the softmax of the k largest cosines (RbM, eq. 3). The memory is a moving average of the rows served
    (eq. 4), at a rate that may anneal to 1 (eq. 14).

    Args:
        dim: D.
        config: the router's settings; the defaults of ``MemoryRouterConfig`` if None.
        eps: smallest norm.
        options: fields of ``MemoryRouterConfig`` by keyword; they replace those of ``config``.

    Attributes:
        epoch: t of eq. 14.
        following: whether a training forward moves the embeddings; otherwise only ``follow_`` does.

    Raises:
        ValueError: an argument is out of its range.

    Examples:
        >>> router = CosineMemoryRouter(dim=16, num_experts=4, k=2)
        >>> gate, index, memory = router(torch.randn(10, 16))
    """

    memory: Tensor

    def __init__(
        self, dim: int, config: MemoryRouterConfig | None = None, *, eps: float = 1e-12, **options: Any
    ) -> None:
        super().__init__()
        config = replace(config or MemoryRouterConfig(), **options)
        self.dim, self.num_experts, self.k, self.eps = dim, config.num_experts, config.k, eps
        self.config = config
        self.epoch = 0
        self.following = True
        start_ED = F.normalize(torch.randn(self.num_experts, dim), dim=1, eps=eps)
        if config.memory == "parameter":
            self.memory = nn.Parameter(start_ED)
        else:
            self.register_buffer("memory", start_ED)

    def rate(self) -> float:
        """Return the share of the old embedding kept at this epoch: lambda(t) of eq. 14, at most 1."""
        config = self.config
        slope = (1.0 - config.ema_rate) * config.annealing / config.annealing_epochs
        return min(1.0, config.ema_rate + slope * self.epoch)

    @torch.no_grad()
    def set_memory(self, memory_ED: Tensor) -> None:
        """Replace the embeddings with the directions of ``memory_ED``, such as k-means centres."""
        shape, got = list(self.memory.shape), list(memory_ED.shape)
        expect(shape == got, "CosineMemoryRouter", "memory", f"of shape {shape}", got)
        self.memory.copy_(F.normalize(memory_ED.to(self.memory), dim=1, eps=self.eps))

    def spread_(self, step: float) -> None:
        """Take one plain SGD step on the embeddings down the self-similarity loss (eq. 7)."""
        with torch.enable_grad():
            leaf_ED = self.memory.detach().clone().requires_grad_()
            (slope_ED,) = torch.autograd.grad(self_similarity(leaf_ED, self.eps), leaf_ED)
        with torch.no_grad():
            self.memory.sub_(slope_ED, alpha=step)

    @torch.no_grad()
    def follow_(self, x_ND: Tensor, routing: MemoryRouting, copies_N: Tensor | None = None) -> None:
        """Move the embeddings towards the rows they serve (eq. 4).

        Args:
            x_ND: the rows.
            routing: the result of ``route`` for them.
            copies_N: how many equal rows each row stands for; None means one.
        """
        gate_NK = routing.gate.detach()
        if copies_N is not None:
            # The average weighs rows by the softmax of their gates, in which a factor is an addend.
            gate_NK = gate_NK + copies_N.to(gate_NK).log()[:, None]
        moved_ED = memory_update(
            routing.memory, x_ND.detach(), gate_NK, routing.index, self.rate(), self.config.normalize_inputs, self.eps
        )
        self.memory.copy_(moved_ED)

    def route(self, x_ND: Tensor) -> MemoryRouting:
        """Choose the experts of rows without moving the embeddings."""
        # A copy, because autograd saves it for the gate's gradient and later steps move the memory in place.
        memory_ED = self.memory.detach().clone() if self.training else self.memory.detach()
        gate_NK, index_NK = cosine_topk(x_ND, memory_ED, self.k, self.eps)
        return MemoryRouting(gate_NK, index_NK, memory_ED)

    def forward(self, x_ND: Tensor) -> MemoryRouting:
        if not (self.training and self.following):
            return self.route(x_ND)
        # One pass over the rows routes them and moves the embeddings: route and follow_ together.
        memory_ED = self.memory.detach().clone()
        gate_NK, index_NK, moved_ED = cosine_topk_update(
            x_ND, memory_ED, self.k, self.rate(), self.config.normalize_inputs, self.eps
        )
        with torch.no_grad():
            self.memory.copy_(moved_ED)
        return MemoryRouting(gate_NK, index_NK, memory_ED)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_experts={self.num_experts}, k={self.k}, ema_rate={self.config.ema_rate}"
