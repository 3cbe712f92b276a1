"""Routers of students: by a memory that follows the rows it serves, or by learnt embeddings in a space of their own.

N rows, E experts, K chosen experts a row, D router dimension, H dimension that rows are projected to.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import cosine_topk, cosine_topk_update, memory_update, topk_softmax
from .gates import Routing
from .losses.balance import squared_cv, sums
from .losses.memory import self_similarity
from .scales import learnt_factor


class MemoryRouting(NamedTuple):
    """What a :class:`CosineMemoryRouter` decided for a batch.

    Attributes:
        gate: [N, k] routing weights, descending; their gradient flows to the router's input.
        index: int64 [N, k] expert ids.
        memory: [E, D] the embeddings that decided, before this batch moved them; no gradient.
    """

    gate: Tensor
    index: Tensor  # type: ignore[assignment]
    memory: Tensor


class CosineMemoryRouter(nn.Module):
    """Route each row to its k nearest expert embeddings; in training the embeddings follow their rows.

    gate = softmax of the k largest cosines (RbM, eq. 3); memory <- moving average of the rows served (eq. 4) at a rate
    that may anneal to 1 (eq. 14).

    Args:
        dim: D.
        num_experts: E.
        k: experts per row, 1 <= k <= E.
        ema_rate: lambda_0, share of the old embedding kept at each training forward.
        annealing: Delta in [0, 1); 0 keeps the rate constant.
        annealing_epochs: T, epochs after which a fraction Delta of the way to rate 1 is gone.
        normalize_inputs: average directions of rows; False averages the rows as they are.
        memory: "buffer" moves by the average and by :meth:`spread_` alone; "parameter" is also seen by the optimizer.
        eps: smallest norm.

    Attributes:
        following: whether a training forward moves the embeddings; else only :meth:`follow_` does.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> router = CosineMemoryRouter(dim=16, num_experts=4, k=2)
        >>> gate, index, memory = router(torch.randn(10, 16))
    """

    memory: Tensor

    def __init__(
        self,
        dim: int,
        num_experts: int,
        k: int,
        ema_rate: float = 0.9,
        annealing: float = 0.0,
        annealing_epochs: int = 200,
        normalize_inputs: bool = True,
        memory: Literal["buffer", "parameter"] = "buffer",
        eps: float = 1e-12,
    ) -> None:
        super().__init__()
        if not 1 <= k <= num_experts:
            raise ValueError(f"CosineMemoryRouter: expected 'k' in [1, num_experts = {num_experts}], got {k}")
        if not 0.0 <= ema_rate <= 1.0:
            raise ValueError(f"CosineMemoryRouter: expected 'ema_rate' in [0, 1], got {ema_rate}")
        if not 0.0 <= annealing < 1.0:
            raise ValueError(f"CosineMemoryRouter: expected 'annealing' in [0, 1), got {annealing}")
        if annealing_epochs < 1:
            raise ValueError(f"CosineMemoryRouter: expected 'annealing_epochs' >= 1, got {annealing_epochs}")
        if memory not in ("buffer", "parameter"):
            raise ValueError(f"CosineMemoryRouter: expected 'memory' to be 'buffer' or 'parameter', got {memory!r}")
        self.dim, self.num_experts, self.k, self.eps = dim, num_experts, k, eps
        self.ema_rate, self.annealing, self.annealing_epochs = ema_rate, annealing, annealing_epochs
        self.normalize_inputs = normalize_inputs
        self.epoch = 0
        self.following = True
        start_ED = F.normalize(torch.randn(num_experts, dim), dim=1, eps=eps)
        if memory == "parameter":
            self.memory = nn.Parameter(start_ED)
        else:
            self.register_buffer("memory", start_ED)

    def rate(self) -> float:
        """Share of the old embedding kept at this epoch: lambda(t) of eq. 14, at most 1."""
        slope = (1.0 - self.ema_rate) * self.annealing / self.annealing_epochs
        return min(1.0, self.ema_rate + slope * self.epoch)

    @torch.no_grad()
    def set_memory(self, memory_ED: Tensor) -> None:
        """Replace the embeddings by the directions of ``memory_ED`` (k-means centres)."""
        if memory_ED.shape != self.memory.shape:
            raise ValueError(
                f"CosineMemoryRouter: expected 'memory' of shape {list(self.memory.shape)}, got {list(memory_ED.shape)}"
            )
        self.memory.copy_(F.normalize(memory_ED.to(self.memory), dim=1, eps=self.eps))

    def spread_(self, step: float) -> None:
        """One plain SGD step of the self-similarity loss (eq. 7) on the embeddings."""
        with torch.enable_grad():
            leaf_ED = self.memory.detach().clone().requires_grad_()
            (slope_ED,) = torch.autograd.grad(self_similarity(leaf_ED, self.eps), leaf_ED)
        with torch.no_grad():
            self.memory.sub_(slope_ED, alpha=step)

    @torch.no_grad()
    def follow_(self, x_ND: Tensor, routing: MemoryRouting, copies_N: Tensor | None = None) -> None:
        """Move the embeddings to the rows they serve (eq. 4).

        Args:
            x_ND: the rows.
            routing: where :meth:`route` sent them.
            copies_N: how many equal rows each row stands for; None: one.
        """
        gate_NK = routing.gate.detach()
        if copies_N is not None:
            # The average weighs rows by the softmax of their gates, where a factor is a summand.
            gate_NK = gate_NK + copies_N.to(gate_NK).log()[:, None]
        moved_ED = memory_update(
            routing.memory, x_ND.detach(), gate_NK, routing.index, self.rate(), self.normalize_inputs, self.eps
        )
        self.memory.copy_(moved_ED)

    def route(self, x_ND: Tensor) -> MemoryRouting:
        """Send rows to their experts; the embeddings stay."""
        # The copy keeps what autograd has saved for the gate's gradient apart from later moves.
        memory_ED = self.memory.detach().clone() if self.training else self.memory.detach()
        gate_NK, index_NK = cosine_topk(x_ND, memory_ED, self.k, self.eps)
        return MemoryRouting(gate_NK, index_NK, memory_ED)

    def forward(self, x_ND: Tensor) -> MemoryRouting:
        if not (self.training and self.following):
            return self.route(x_ND)
        # One pass over the rows routes them and moves the embeddings: route and follow_ together.
        memory_ED = self.memory.detach().clone()
        gate_NK, index_NK, moved_ED = cosine_topk_update(
            x_ND, memory_ED, self.k, self.rate(), self.normalize_inputs, self.eps
        )
        with torch.no_grad():
            self.memory.copy_(moved_ED)
        return MemoryRouting(gate_NK, index_NK, memory_ED)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_experts={self.num_experts}, k={self.k}, ema_rate={self.ema_rate}"


class ProjectedRouter(nn.Module):
    """Route each row to the k experts whose learnt embeddings are nearest to its projection.

    gate = Softmax(TopK(t cos(q_e, W x + b)))   (RbM, eq. 2; X-MoE), everything learnt by backpropagation

    Args:
        dim: D.
        proj_dim: H.
        num_experts: E.
        k: experts per row, 1 <= k <= E.
        variant: "paper": t = 1 and no b. "released_code": b and a learnt t, started at 2, noise N(0, 1) / E on the
            scores in training, and gates that are a softmax over all E scores, so that those chosen sum to less than 1.
        eps: smallest norm.

    Attributes:
        over_all: gates are a softmax over all scores, not over the chosen ones.
        noisy: scores get noise in training.

    Raises:
        ValueError: an argument is out of its range.

    Determinism: the noise comes from torch's generator, so ``torch.manual_seed`` fixes it.

    Example:
        >>> routing = ProjectedRouter(dim=16, proj_dim=8, num_experts=4, k=2)(torch.randn(10, 16))
        >>> routing.gate.shape
        torch.Size([10, 2])
    """

    def __init__(
        self,
        dim: int,
        proj_dim: int,
        num_experts: int,
        k: int,
        variant: Literal["paper", "released_code"] = "paper",
        eps: float = 1e-12,
    ) -> None:
        super().__init__()
        if proj_dim < 1:
            raise ValueError(f"ProjectedRouter: expected 'proj_dim' of at least 1, got {proj_dim}")
        if not 1 <= k <= num_experts:
            raise ValueError(f"ProjectedRouter: expected 'k' in [1, num_experts = {num_experts}], got {k}")
        if variant not in ("paper", "released_code"):
            raise ValueError(f"ProjectedRouter: expected 'variant' to be 'paper' or 'released_code', got {variant!r}")
        released = variant == "released_code"
        self.dim, self.proj_dim, self.num_experts, self.k, self.eps = dim, proj_dim, num_experts, k, eps
        self.over_all = self.noisy = released
        self.projection = nn.Linear(dim, proj_dim, bias=released)
        self.embeddings = nn.Parameter(0.01 * torch.randn(num_experts, proj_dim))
        self.log_temperature = nn.Parameter(torch.tensor(math.log(2.0))) if released else None

    def temperature(self) -> Tensor | None:
        """t, or None for 1."""
        return None if self.log_temperature is None else learnt_factor(self.log_temperature)

    def scores(self, x_ND: Tensor) -> Tensor:
        """t cos(q_e, W x + b) [N, E]."""
        unit_NH = F.normalize(self.projection(x_ND), dim=1, eps=self.eps)
        cosine_NE = unit_NH @ F.normalize(self.embeddings, dim=1, eps=self.eps).T
        temperature = self.temperature()
        return cosine_NE if temperature is None else temperature * cosine_NE

    def forward(self, x_ND: Tensor) -> Routing:
        """Route the rows; the losses are those of the gates' sums and of the experts' rows."""
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
