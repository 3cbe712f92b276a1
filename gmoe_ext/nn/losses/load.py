"""Balance losses of the noisy top-k gate: importance (GMoE eq. 5) and load (eqs. 6-8)."""

from __future__ import annotations

import math

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


def importance(gate_NK: Tensor, index_NK: Tensor, num_experts: int) -> Tensor:
    """Importance loss: how unevenly the gate weights sum up over experts.

    L_importance = CV(sum_i G(h_i))^2   (GMoE, eq. 5)

    Args:
        gate_NK: gate weights [N, k], floating.
        index_NK: chosen experts [N, k] int64.
        num_experts: E.

    Returns:
        Scalar; gradients flow to ``gate_NK``.

    Example:
        >>> importance(torch.ones(2, 1), torch.tensor([[0], [1]]), num_experts=2)
        tensor(0.)
    """
    # Experts of a row are distinct, so this scatter has no collisions and is deterministic.
    dense_NE = gate_NK.new_zeros(gate_NK.shape[0], num_experts).scatter(1, index_NK, gate_NK)
    return squared_cv(dense_NE.sum(0))


def load(clean_NE: Tensor, noisy_NE: Tensor, sigma_NE: Tensor | None, k: int) -> Tensor:
    """Load loss: how unevenly the chances of being selected sum up over experts.

    P(h_i, o) = Phi((clean_io - kth_ex(noisy_i, k, o)) / sigma_io),  L_load = CV(sum_i P(h_i, .))^2   (GMoE, eqs. 6-8)
    where kth_ex(v, k, o) is the k-th largest of v without v_o.

    Args:
        clean_NE: logits without noise [N, E].
        noisy_NE: logits that the choice was made on [N, E].
        sigma_NE: standard deviation of the noise [N, E]; None when no noise was drawn (evaluation).
        k: experts per row, 1 <= k <= E.

    Returns:
        Scalar; gradients flow to all three. Without noise, and for k = E, the load is the hard count of rows per
        expert, which has no gradient.
    """
    num_experts = clean_NE.shape[1]
    if k >= num_experts:
        return clean_NE.new_zeros(())
    if sigma_NE is None:
        index_NK = torch.sort(noisy_NE.detach(), dim=1, descending=True, stable=True).indices[:, :k]
        return squared_cv(torch.zeros_like(clean_NE).scatter(1, index_NK, 1.0).sum(0))
    top = torch.topk(noisy_NE, k + 1, dim=1).values
    threshold_in, threshold_out = top[:, k : k + 1], top[:, k - 1 : k]
    # Inside the top k the k-th largest of the others is the (k+1)-th of all; outside it is the k-th.
    threshold_NE = torch.where(noisy_NE > threshold_in, threshold_in, threshold_out)
    probability_NE = torch.erf((clean_NE - threshold_NE) / (sigma_NE * math.sqrt(2.0))).add(1.0).mul(0.5)
    return squared_cv(probability_NE.sum(0))
