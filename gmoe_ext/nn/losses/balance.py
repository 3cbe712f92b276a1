"""Balance losses of the top-k gate: importance (GMoE eq. 5) and load (eqs. 6-8).

Both are :func:`squared_cv` of one sum per expert. In training :func:`gmoe_ext.ops.noisy_topk` makes the sums with the
choice; without noise they are those of :func:`sums`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def squared_cv(values_E: Tensor) -> Tensor:
    """Squared coefficient of variation: unbiased variance over squared mean; 0 for a single value.

    Args:
        values_E: one non-negative value per expert, any floating dtype.

    Returns:
        Scalar in the dtype of ``values_E``.
    """
    if values_E.numel() < 2:
        return values_E.new_zeros(())
    # The floor keeps an empty batch (all values 0) at 0 instead of 0/0.
    return values_E.var(unbiased=True) / (values_E.mean().square() + 1e-10)


def sums(gate_NK: Tensor, index_NK: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Sum of the gates of each expert, and how many rows it has: the chances of being chosen without noise.

    Args:
        gate_NK: gate weights [N, k], floating.
        index_NK: chosen experts [N, k] int64, different ones in a row.
        num_experts: E.

    Returns:
        Both [E]; gradients flow to ``gate_NK`` through the first.

    Example:
        >>> sums(torch.ones(2, 1), torch.tensor([[0], [1]]), num_experts=2)
        (tensor([1., 1.]), tensor([1., 1.]))
    """
    # Experts of a row are distinct, so these scatters have no collisions and are deterministic.
    none_NE = gate_NK.new_zeros(gate_NK.shape[0], num_experts)
    chosen_NE = none_NE.scatter(1, index_NK, torch.ones_like(gate_NK))
    return none_NE.scatter(1, index_NK, gate_NK).sum(0), chosen_NE.sum(0)
