"""Routing by memory: expert embeddings that follow the rows they serve.

N rows, E experts, K chosen experts a row, D router dimension.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import expect, expect_choice
from ...feature_rows import Features
from ...ops import cosine_topk, cosine_topk_update, memory_update
from ..layer import configured, recomputing
from ..losses import self_similarity

# The weight of an expert without rows in the average over forwards and ranks: beside a single row it vanishes.
TINY_WEIGHT = 1e-20


@dataclass(frozen=True, kw_only=True)
class MemoryRouterConfig:
    """Settings of a ``CosineMemoryRouter``.

    Attributes:
        num_experts: E.
        k: experts per row, 1 <= k <= E.
        ema_rate: lambda_0, share of the old embedding kept at each step.
        annealing: Delta in [0, 1); 0 keeps the rate constant.
        annealing_epochs: T, epochs after which the rate has moved a fraction Delta of the way to 1.
        normalize_inputs: average the directions of rows; False averages the rows themselves.
        memory: "buffer" is moved by ``CosineMemoryRouter.after_step`` and ``spread_`` alone; "parameter" is also
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
        memory: [E, D] the embeddings that decided, as they were then; no gradient.
    """

    gate: Tensor
    index: Tensor  # type: ignore[assignment]  # the field hides tuple.index on purpose
    memory: Tensor


class Move(NamedTuple):
    """Where the rows of one or several forwards move a memory.

    Attributes:
        start: [E, D] the embeddings that routed them.
        target: [E, D] the embeddings after eq. 4, of all these rows as one batch.
        gate: [N, k] gates of the rows.
        index: [N, k] their experts. None says that ``gate`` [E, 1] holds what the rows of each expert weigh.
    """

    start: Tensor
    target: Tensor
    gate: Tensor
    index: Tensor | None  # type: ignore[assignment]  # the field hides tuple.index on purpose

    def weighted(self) -> Tensor:
        """Return the target times the weight of the rows beside that weight, to be added to others': [E, D + 1]."""
        weight_E1 = self.gate
        if self.index is not None:
            share_NK = self.gate.to(torch.promote_types(self.gate.dtype, torch.float32)).exp()
            share_NE = share_NK.new_zeros(len(share_NK), len(self.start)).scatter(1, self.index, share_NK)
            # An expert without rows keeps its direction: all moves agree on it, so any weight will do.
            weight_E1 = share_NE.sum(0).clamp_min(TINY_WEIGHT).unsqueeze(1)
        return torch.cat([self.target * weight_E1, weight_E1], dim=1)

    def of_all(self, sums: Tensor) -> Move:
        """Return the move of all rows whose ``weighted`` are summed.

        Eq. 4 is linear in the average of the rows, and all rows were routed by the same embeddings.
        """
        return Move(self.start, (sums[:, :-1] / sums[:, -1:]).to(self.target), sums[:, -1:], None)


class CosineMemoryRouter(nn.Module):
    """Route each row to its k nearest expert embeddings; in training the embeddings follow their rows.

    The gate is the softmax of the k largest cosines (RbM, eq. 3). The memory is a moving average of the rows served
    (eq. 4), at a rate that may anneal to 1 (eq. 14). A training forward only records where its rows move the memory;
    ``after_step``, to be called after each step of the optimizer, moves it. All forwards between two calls count as one
    batch, and a forward that activation checkpointing repeats is not recorded again.

    Args:
        dim: D.
        settings: a ``MemoryRouterConfig``, or its ``num_experts`` and ``k``.
        eps: smallest norm.
        options: fields of ``MemoryRouterConfig`` by keyword.

    Attributes:
        epoch: t of eq. 14.
        following: whether training forwards are recorded; otherwise only ``follow_`` moves the embeddings.

    Raises:
        ValueError: an argument is out of its range.

    Examples:
        >>> router = CosineMemoryRouter(dim=16, num_experts=4, k=2)
        >>> gate, index, memory = router(torch.randn(10, 16))
        >>> router.after_step()
    """

    memory: Tensor

    def __init__(self, dim: int, *settings: Any, eps: float = 1e-12, **options: Any) -> None:
        super().__init__()
        config = configured(MemoryRouterConfig, ("num_experts", "k"), settings, options)
        self.dim, self.num_experts, self.k, self.eps = dim, config.num_experts, config.k, eps
        self.config = config
        self.epoch = 0
        self.following = True
        self._move: Move | None = None
        self._trained = False
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
        self._move = None

    def spread_(self, step: float) -> None:
        """Take one plain SGD step on the embeddings down the self-similarity loss (eq. 7)."""
        with torch.enable_grad():
            leaf_ED = self.memory.detach().clone().requires_grad_()
            (slope_ED,) = torch.autograd.grad(self_similarity(leaf_ED, self.eps), leaf_ED)
        with torch.no_grad():
            self.memory.sub_(slope_ED, alpha=step)

    @torch.no_grad()
    def after_step(self, group: dist.ProcessGroup | None = None) -> None:
        """Move the embeddings as the forwards since the last call have recorded; without any, do nothing.

        If ``torch.distributed`` is initialized, the rows of all ranks count as one batch, and every rank has to call.

        Args:
            group: the ranks that train this router together; None means all.
        """
        move, self._move, self._trained = self._move, None, False
        if move is None:
            return
        if dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1:
            sums = move.weighted()
            dist.all_reduce(sums, group=group)
            move = move.of_all(sums)
        # What an optimizer did to a "parameter" since then stays; the difference is 0 for a "buffer".
        self.memory.copy_(move.target + (self.memory - move.start))

    @torch.no_grad()
    def follow_(self, x_ND: Features, routing: MemoryRouting, copies_N: Tensor | None = None) -> None:
        """Move the embeddings towards the rows they serve (eq. 4), at once.

        Args:
            x_ND: the rows.
            routing: the result of ``route`` for them.
            copies_N: how many equal rows each row stands for; None means one.
        """
        gate_NK = routing.gate
        if copies_N is not None:
            # The average weighs rows by the softmax of their gates, in which a factor is an addend.
            gate_NK = gate_NK + copies_N.to(gate_NK).log()[:, None]
        target_ED = memory_update(
            routing.memory, x_ND, gate_NK, routing.index, self.rate(), self.config.normalize_inputs, self.eps
        )
        self._record(routing.memory, gate_NK, routing.index, target_ED)
        self.after_step()

    def _record(self, start_ED: Tensor, gate_NK: Tensor, index_NK: Tensor, target_ED: Tensor) -> None:
        """Add a batch to the move that ``after_step`` will make."""
        if torch.is_grad_enabled():  # unlike in torch.optim.swa_utils.update_bn, which trains nothing
            self._trained = True
        if recomputing():
            return
        move, before = Move(start_ED, target_ED.detach(), gate_NK.detach(), index_NK), self._move
        if before is not None:
            with torch.no_grad():
                move = move.of_all(before.weighted() + move.weighted())
        self._move = move

    def train(self, mode: bool = True) -> Self:
        """Set the mode; warn if training ends with forwards after which ``after_step`` was not called."""
        if not mode:
            self.expect_moved()
        return super().train(mode)

    def expect_moved(self) -> None:
        """Warn if a recorded move has not been made."""
        if self._move is not None and self._trained:
            warnings.warn(
                "RbM: the memory does not move, because the training loop does not call after_step\n"
                "  fix: call after_step(learning_rate) of the student, or of each RbMLayer, after optimizer.step()",
                stacklevel=2,
            )

    def route(self, x_ND: Features) -> MemoryRouting:
        """Choose the experts of rows, and record nothing."""
        memory_ED = self._fixed_memory()
        gate_NK, index_NK = cosine_topk(x_ND, memory_ED, self.k, self.eps)
        return MemoryRouting(gate_NK, index_NK, memory_ED)

    def forward(self, x_ND: Features) -> MemoryRouting:
        if not (self.training and self.following):
            return self.route(x_ND)
        # One pass over the rows routes them and averages them.
        memory_ED = self._fixed_memory()
        gate_NK, index_NK, target_ED = cosine_topk_update(
            x_ND, memory_ED, self.k, self.rate(), self.config.normalize_inputs, self.eps
        )
        self._record(memory_ED, gate_NK, index_NK, target_ED)
        return MemoryRouting(gate_NK, index_NK, memory_ED)

    def _fixed_memory(self) -> Tensor:
        """Return the memory, safe from later moves if a backward may need it."""
        memory_ED = self.memory.detach()
        return memory_ED.clone() if torch.is_grad_enabled() or self.training else memory_ED

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_experts={self.num_experts}, k={self.k}, ema_rate={self.config.ema_rate}"
