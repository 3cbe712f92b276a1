"""BatchNorm per expert, over the rows routed to it or over all nodes, without a loop over experts.

Shapes: N nodes, K slots of a node, E experts, F features, S = N * K slots.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .gates import Slots


class ExpertBatchNorm(nn.Module):
    """A BatchNorm for each expert's rows.

    In training an expert's statistics are those of the slots that it computes: its routed rows, or all nodes when the
    slots hold every expert. In evaluation they are its running statistics. An expert with fewer than two rows has no
    variance: it leaves its running statistics alone and normalises by them.

    Args:
        num_experts: E.
        dim: F.
        eps: added to the variance.
        momentum: share of the new batch in the running statistics.

    Determinism: forward and backward are sums in fixed order; second derivatives are refused with routed slots.

    Example:
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
        """(scale, shift), both [E, F]: what the norm is in evaluation, ready to fold into a linear layer."""
        scale_EF = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale_EF, self.bias - self.running_mean * scale_EF

    def forward(self, y: Tensor, slots: Slots) -> Tensor:
        """Normalise ``y`` [N, K, F], the result of each slot."""
        if y.dtype in (torch.bfloat16, torch.float16):
            return self.forward(y.float(), slots).to(y.dtype)
        if self.training and not slots.every:
            return self._routed(y, slots)
        if self.training and y.shape[0] > 1:
            channels = (
                self.running_mean.view(-1),
                self.running_var.view(-1),
                self.weight.view(-1),
                self.bias.view(-1),
            )
            return F.batch_norm(y.flatten(1), *channels, True, self.momentum, self.eps).view(y.shape)
        scale_EF, shift_EF = self.affine()
        return scale_slots(y, slots, scale_EF, shift_EF)

    def _routed(self, y_NKF: Tensor, slots: Slots) -> Tensor:
        member_ES = slots.membership(y_NKF.dtype)
        running = self.running_mean, self.running_var
        out_SF, mean_EF, var_EF, count_E1 = _RoutedNorm.apply(  # type: ignore[no-untyped-call]
            y_NKF.reshape(-1, self.dim), slots.index.reshape(-1), member_ES, self.weight, self.bias, *running, self.eps
        )
        with torch.no_grad():
            rate_E1 = self.momentum * (count_E1 > 1).to(mean_EF.dtype)
            unbiased_EF = var_EF * (count_E1 / (count_E1 - 1).clamp_min(1))
            self.running_mean.lerp_(mean_EF, rate_E1)
            self.running_var.lerp_(unbiased_EF, rate_E1)
        normalised: Tensor = out_SF.view(y_NKF.shape)
        return normalised

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, dim={self.dim}, eps={self.eps}, momentum={self.momentum}"


def scale_slots(y_NKF: Tensor, slots: Slots, scale_EF: Tensor, shift_EF: Tensor) -> Tensor:
    """scale_e * y + shift_e for the expert e of each slot."""
    if slots.every:
        return torch.addcmul(shift_EF, y_NKF, scale_EF)
    return torch.addcmul(shift_EF[slots.index], y_NKF, scale_EF[slots.index])


class _RoutedNorm(torch.autograd.Function):
    """Batch normalisation of rows grouped by expert; sums per expert and spreads over rows are matrix products."""

    @staticmethod
    def forward(
        ctx: Any,
        y_SF: Tensor,
        index_S: Tensor,
        member_ES: Tensor,
        weight_EF: Tensor,
        bias_EF: Tensor,
        running_mean_EF: Tensor,
        running_var_EF: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        count_E1 = member_ES.sum(1, keepdim=True)
        enough_E1, divisor_E1 = count_E1 > 1, count_E1.clamp_min(1)
        mean_EF = torch.where(enough_E1, (member_ES @ y_SF) / divisor_E1, running_mean_EF)
        # Two passes: the squares are of centered values, so nothing cancels.
        centered_SF = mean_EF.index_select(0, index_S)
        torch.sub(y_SF, centered_SF, out=centered_SF)
        out_SF = centered_SF.square()
        var_EF = torch.where(enough_E1, (member_ES @ out_SF) / divisor_E1, running_var_EF)
        inverse_EF = torch.rsqrt(var_EF + eps)
        # The rows are large and memory is the cost: every step from here works in place.
        torch.index_select(weight_EF * inverse_EF, 0, index_S, out=out_SF)
        out_SF.mul_(centered_SF).addmm_(member_ES.T, bias_EF)
        ctx.save_for_backward(centered_SF, index_S, member_ES, weight_EF, inverse_EF, count_E1)
        ctx.mark_non_differentiable(mean_EF, var_EF, count_E1)
        return out_SF, mean_EF, var_EF, count_E1

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_SF: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        centered_SF, index_S, member_ES, weight_EF, inverse_EF, count_E1 = ctx.saved_tensors
        grad_bias_EF = member_ES @ grad_SF
        rows_SF = grad_SF * centered_SF
        grad_weight_EF = (member_ES @ rows_SF) * inverse_EF
        if not ctx.needs_input_grad[0]:
            return None, None, None, grad_weight_EF, grad_bias_EF, None, None, None
        # Running statistics, used where rows are too few, are constants: no mean to take out.
        share_E1 = torch.where(count_E1 > 1, 1.0 / count_E1.clamp_min(1), 0.0)
        slope_EF = weight_EF * inverse_EF
        along_EF = -slope_EF * inverse_EF * grad_weight_EF * share_E1
        torch.index_select(along_EF, 0, index_S, out=rows_SF)
        grad_y_SF = slope_EF.index_select(0, index_S).mul_(grad_SF).addcmul_(rows_SF, centered_SF)
        grad_y_SF.addmm_(member_ES.T, slope_EF * grad_bias_EF * share_E1, alpha=-1.0)
        return grad_y_SF, None, None, grad_weight_EF, grad_bias_EF, None, None, None
