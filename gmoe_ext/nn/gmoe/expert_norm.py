"""BatchNorm per expert, over the rows routed to it or over all nodes, without looping over experts.

Shapes: N nodes, K slots of a node, E experts, F features, S = N * K slots.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import ops
from .noisy_gate import Slots


class ExpertBatchNorm(nn.Module):
    """Normalise each expert's rows by a BatchNorm of its own.

    In training an expert's statistics are those of the slots that it computes: its routed rows, or all nodes if the
    slots hold every expert. In evaluation they are its running statistics. With fewer than two rows there is no
    variance: the expert normalises by its running statistics and does not update them.

    Args:
        num_experts: E.
        dim: F.
        eps: added to the variance.
        momentum: share of the new batch in the running statistics.

    Determinism: forward and backward sum in a fixed order. With routed slots, second derivatives raise an error.

    Examples:
        >>> slots = Slots.chosen(torch.tensor([[0], [1], [0]]), num_experts=2)
        >>> ExpertBatchNorm(2, dim=4)(torch.randn(3, 1, 4), slots).shape
        torch.Size([3, 1, 4])
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_experts: int, dim: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.num_experts, self.dim, self.eps, self.momentum = num_experts, dim, eps, momentum
        self.weight = nn.Parameter(torch.ones(num_experts, dim))
        self.bias = nn.Parameter(torch.zeros(num_experts, dim))
        self.register_buffer("running_mean", torch.zeros(num_experts, dim))
        self.register_buffer("running_var", torch.ones(num_experts, dim))

    def affine(self) -> tuple[Tensor, Tensor]:
        """Return the evaluation norm as (scale, shift), both [E, F], ready to fold into a linear layer."""
        scale_EF = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale_EF, self.bias - self.running_mean * scale_EF

    def forward(self, y: Tensor, slots: Slots, gate: Tensor | None = None) -> Tensor:
        """Normalise ``y`` [N, K, F], the result of each slot; with ``gate`` [N, K] sum a node's slots to [N, F]."""
        if y.dtype in (torch.bfloat16, torch.float16):
            return self.forward(y.float(), slots, None if gate is None else gate.float()).to(y.dtype)
        if self.training and not slots.every:
            return self._routed(y, slots, gate)
        y = self._apart(y, slots)
        return y if gate is None else combine(y, gate)

    def _apart(self, y: Tensor, slots: Slots) -> Tensor:
        if self.training and y.shape[0] > 1:
            running = self.running_mean.view(-1), self.running_var.view(-1)
            affine = self.weight.view(-1), self.bias.view(-1)
            return F.batch_norm(y.flatten(1), *running, *affine, True, self.momentum, self.eps).view(y.shape)
        scale_EF, shift_EF = self.affine()
        return scale_slots(y, slots, scale_EF, shift_EF)

    def _routed(self, y: Tensor, slots: Slots, gate: Tensor | None) -> Tensor:
        running = self.running_mean, self.running_var
        out, mean_EF, var_EF, count_E = ops.expert_norm(
            y, slots.index, self.weight, self.bias, *running, gate=gate, eps=self.eps
        )
        with torch.no_grad():
            count_E1 = count_E.unsqueeze(1).to(mean_EF.dtype)
            rate_E1 = self.momentum * (count_E1 > 1).to(mean_EF.dtype)
            unbiased_EF = var_EF * (count_E1 / (count_E1 - 1).clamp_min(1))
            self.running_mean.lerp_(mean_EF, rate_E1)
            self.running_var.lerp_(unbiased_EF, rate_E1)
        return out

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
