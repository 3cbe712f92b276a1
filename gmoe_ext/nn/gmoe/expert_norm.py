"""BatchNorm per expert, over the rows routed to it or over all nodes, without looping over experts.

Shapes: N nodes, K slots of a node, E experts, F features, S = N * K slots.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ... import ops
from ..layer import recomputing
from .noisy_gate import Slots


class ExpertBatchNorm(_BatchNorm):
    """Normalise each expert's rows by a BatchNorm of its own.

    In training an expert's statistics are those of the slots that it computes: its routed rows, or all nodes if the
    slots hold every expert. In evaluation they are its running statistics. With fewer than two rows there is no
    variance: the expert normalises by its running statistics and does not update them.

    Args:
        num_experts: E.
        dim: F.
        eps: added to the variance.
        momentum: share of the new batch in the running statistics; None takes the mean over all batches.

    It is one of torch's ``_BatchNorm``, so that ``torch.optim.swa_utils.update_bn`` finds it. Unlike these, it does not
    count a batch again that activation checkpointing repeats.

    Determinism: forward and backward sum in a fixed order. With routed slots, second derivatives raise an error.

    Examples:
        >>> slots = Slots.chosen(torch.tensor([[0], [1], [0]]), num_experts=2)
        >>> ExpertBatchNorm(2, dim=4)(torch.randn(3, 1, 4), slots).shape
        torch.Size([3, 1, 4])
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_experts: int, dim: int, eps: float = 1e-5, momentum: float | None = 0.1) -> None:
        super().__init__(num_experts * dim, eps, momentum)
        self.num_experts, self.dim = num_experts, dim
        self.weight = nn.Parameter(torch.ones(num_experts, dim))
        self.bias = nn.Parameter(torch.zeros(num_experts, dim))
        self.running_mean, self.running_var = torch.zeros(num_experts, dim), torch.ones(num_experts, dim)
        self.num_batches_tracked = torch.zeros(num_experts, dtype=torch.int64)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return the evaluation norm as (scale, shift), both [E, F], ready to fold into a linear layer."""
        # A copy, because autograd saves the mean and later training forwards change it in place.
        mean_EF = self.running_mean.clone() if torch.is_grad_enabled() else self.running_mean
        scale_EF = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale_EF, self.bias - mean_EF * scale_EF

    def forward(  # type: ignore[override]  # more than the rows is needed
        self, y: Tensor, slots: Slots, gate: Tensor | None = None
    ) -> Tensor:
        """Normalise ``y`` [N, K, F], the result of each slot; with ``gate`` [N, K] sum a node's slots to [N, F].

        Half precision is normalised in float32, and the result is of y's dtype.
        """
        wide = y.float() if y.dtype in (torch.bfloat16, torch.float16) else y
        gate = None if gate is None else gate.to(wide.dtype)
        if self.training and (not slots.every or len(y) > 1):
            out = self._by_batch(wide, slots, gate)
        else:
            scale_EF, shift_EF = self.scale_and_shift()
            out = scale_slots(wide, slots, scale_EF.to(wide.dtype), shift_EF.to(wide.dtype))
            out = out if gate is None else combine(out, gate)
        return out.to(y.dtype)

    def _by_batch(self, y: Tensor, slots: Slots, gate: Tensor | None) -> Tensor:
        weight, bias = self.weight.to(y.dtype), self.bias.to(y.dtype)
        running = self.running_mean, self.running_var
        mean, var = running[0].to(y.dtype), running[1].to(y.dtype)
        repeated = recomputing()
        if not slots.every:
            out, mean_EF, var_EF, count_E = ops.expert_norm(
                y, slots.index, weight, bias, mean, var, gate=gate, eps=self.eps
            )
            if not repeated:
                self._follow(mean_EF, var_EF, count_E)
            return out
        if repeated:
            running = mean, var = mean.clone(), var.clone()
        else:
            self.num_batches_tracked.add_(1)
        rate = 1.0 / int(self.num_batches_tracked[0]) if self.momentum is None else self.momentum
        flat = y.flatten(1), mean.view(-1), var.view(-1), weight.view(-1), bias.view(-1)
        out = F.batch_norm(*flat, True, rate, self.eps).view(y.shape)
        if mean.dtype != running[0].dtype:  # in a module of half precision, the norm has moved copies
            running[0].copy_(mean), running[1].copy_(var)
        return out if gate is None else combine(out, gate)

    @torch.no_grad()
    def _follow(self, mean_EF: Tensor, var_EF: Tensor, count_E: Tensor) -> None:
        """Take the statistics of a batch into the running ones, of each expert with a variance."""
        known_E = count_E > 1
        self.num_batches_tracked.add_(known_E)
        rate = 1.0 / self.num_batches_tracked.clamp_min(1) if self.momentum is None else self.momentum
        rate_E1, count_E1 = (rate * known_E).unsqueeze(1), count_E.unsqueeze(1).to(mean_EF.dtype)
        unbiased_EF = var_EF * (count_E1 / (count_E1 - 1).clamp_min(1))
        for running, new_EF in ((self.running_mean, mean_EF), (self.running_var, unbiased_EF)):
            running.lerp_(new_EF.to(running.dtype), rate_E1.to(running.dtype))

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, dim={self.dim}, eps={self.eps}, momentum={self.momentum}"


def scale_slots(y_NKF: Tensor, slots: Slots, scale_EF: Tensor, shift_EF: Tensor) -> Tensor:
    """Compute scale_e * y + shift_e for the expert e of each slot."""
    if slots.every:
        return torch.addcmul(shift_EF, y_NKF, scale_EF)
    return torch.addcmul(shift_EF[slots.index], y_NKF, scale_EF[slots.index])


def combine(y_NKF: Tensor, gate_NK: Tensor) -> Tensor:
    """Sum each node's results, weighted by its gates: [N, F]."""
    return torch.bmm(gate_NK.unsqueeze(1), y_NKF).squeeze(1)
