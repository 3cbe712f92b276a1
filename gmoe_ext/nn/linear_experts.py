"""E linear maps in one stacked weight, and the positive factors that layers learn beside them.

N rows, R source rows, E experts, K chosen experts a row, D in, F out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import expect
from ..feature_rows import FeatureRows, Features
from ..ops import expert_linear, sparse_expert_linear, sparse_linear
from ..plan import ExpertPlan

# Largest learned factor, so that one bad step cannot overflow a layer (the value of RbM's released code).
MAX_FACTOR = 100.0


def learned_factor(log_factor: Tensor) -> Tensor:
    """Return exp of a parameter, at most 100."""
    return log_factor.clamp(max=math.log(MAX_FACTOR)).exp()


def linear(x: Features, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply ``torch.nn.functional.linear`` to features of either kind."""
    if isinstance(x, FeatureRows):
        return sparse_linear(x, weight, bias)
    return functional.linear(x, weight, bias)


@torch.no_grad()
def lay_side_by_side(model: nn.Module, in_dim: int) -> None:
    """Lay the weights of an input side by side in memory, in every linear layer of so many inputs.

    Products of sparse features read them in this order, and would copy them in another. Values and results stay; call
    it before the optimizer is made, whose state takes the order of its parameters.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | LinearExperts) and module.weight.shape[-1] == in_dim:
            module.weight.data = module.weight.data.transpose(-1, -2).contiguous().transpose(-1, -2)


class LinearExperts(nn.Module):
    """E linear layers applied to the rows routed to them, combined by the rows' gates.

        y_i = sum_r gate_ir (W_e(i,r) x_i + b_e(i,r))   (RbM, eq. 1)

    Args:
        in_dim: D.
        out_dim: F.
        num_experts: E.

    Examples:
        >>> experts = LinearExperts(16, 8, num_experts=4)
        >>> y = experts(x, ops.expert_plan(index, 4), gate)
    """

    def __init__(self, in_dim: int, out_dim: int, num_experts: int) -> None:
        super().__init__()
        sizes = (in_dim, out_dim, num_experts)
        expect(min(sizes) >= 1, "LinearExperts", "in_dim, out_dim, num_experts", "of at least 1", sizes)
        self.in_dim, self.out_dim, self.num_experts = in_dim, out_dim, num_experts
        self.weight = nn.Parameter(torch.empty(num_experts, out_dim, in_dim))
        self.bias = nn.Parameter(torch.empty(num_experts, out_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise each expert as ``nn.Linear`` does."""
        bound = 1.0 / math.sqrt(self.in_dim)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    @torch.no_grad()
    def clone_first(self) -> None:
        """Overwrite all experts with expert 0 (RbM, section 4.3)."""
        self.weight.copy_(self.weight[:1].expand_as(self.weight))
        self.bias.copy_(self.bias[:1].expand_as(self.bias))

    def first(self, x_ND: Features) -> Tensor:
        """Apply expert 0 alone to every row: [N, F]."""
        return linear(x_ND, self.weight[0], self.bias[0])

    def of_features(
        self, x_ND: FeatureRows, index_NK: Tensor, gate_NK: Tensor, input_scale_ED: Tensor | None = None
    ) -> Tensor:
        """Apply to each row its experts index_NK, as ``forward`` does to dense rows: [N, F]."""
        return sparse_expert_linear(x_ND, self.weight, self.bias, index_NK, gate_NK, input_scale_ED)

    def forward(
        self,
        x_RD: Tensor,
        plan: ExpertPlan,
        gate_NK: Tensor,
        input_scale_ED: Tensor | None = None,
        source_NK: Tensor | None = None,
    ) -> Tensor:
        # Scaling the columns of expert e's matrix scales its inputs, in E*F*D products instead of N*K*D.
        weight_EFD = self.weight if input_scale_ED is None else self.weight * input_scale_ED[:, None, :]
        y_NF: Tensor = expert_linear(x_RD, weight_EFD, self.bias, plan, gate_NK, source_NK)
        return y_NF

    def extra_repr(self) -> str:
        return f"in_dim={self.in_dim}, out_dim={self.out_dim}, num_experts={self.num_experts}"
