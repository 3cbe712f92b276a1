"""Losses on routing: balance of the experts (GMoE, eqs. 5-8; RbM, eq. 8) and RbM's losses on its memory (eqs. 6, 7).

N rows, E experts, K chosen experts a row, D router dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import ArgumentError, expect
from ...feature_rows import FeatureRows, Features
from ...ops import sparse_linear


def squared_cv(values_E: Tensor, eps: float = 1e-10) -> Tensor:
    """Compute the squared coefficient of variation: unbiased variance over squared mean, 0 for a single value.

    GMoE's importance loss (eq. 5) is that of the experts' gate sums, its load loss (eqs. 6-8) that of their expected
    numbers of rows. ``gmoe_ext.ops.noisy_topk`` returns both in training, ``sums`` without noise.

    Args:
        values_E: one non-negative value per expert, any floating dtype.
        eps: keeps an empty batch (all values 0) at 0 instead of 0 / 0.

    Returns:
        Scalar in the dtype of ``values_E``.
    """
    if values_E.numel() < 2:
        return values_E.new_zeros(())
    return values_E.var(unbiased=True) / (values_E.mean().square() + eps)


def sums(gate_NK: Tensor, index_NK: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Sum each expert's gates and count its rows.

    Args:
        gate_NK: gate weights [N, k], floating.
        index_NK: chosen experts [N, k] int64, distinct within a row.
        num_experts: E.

    Returns:
        Both [E] in the dtype of the gates; gradients flow to ``gate_NK`` through the first.

    Examples:
        >>> sums(torch.ones(2, 1), torch.tensor([[0], [1]]), num_experts=2)
        (tensor([1., 1.]), tensor([1., 1.]))
    """
    # Experts of a row are distinct, so these scatters have no collisions and are deterministic on any device.
    none_NE = gate_NK.new_zeros(gate_NK.shape[0], num_experts)
    chosen_NE = none_NE.scatter(1, index_NK, torch.ones_like(gate_NK))
    return none_NE.scatter(1, index_NK, gate_NK).sum(0), chosen_NE.sum(0)


def load_balance(gate_NK: Tensor, index_NK: Tensor, num_experts: int, eps: float = 1e-10) -> Tensor:
    """Even out how much gate weight each expert receives.

        Var(Load) / (Mean(Load)^2 + eps), Load_e = sum of the gates sent to e, unbiased variance   (RbM, eq. 8)

    Args:
        gate_NK: routing weights; the gradient flows through them to the router's input.
        index_NK: int64 expert ids in [0, num_experts).
        num_experts: E >= 2.
        eps: keeps an empty batch finite.

    Returns:
        Scalar >= 0, 0 when every expert carries the same load.

    Raises:
        ValueError: shapes differ or there are fewer than two experts.

    Examples:
        >>> load_balance(torch.ones(4, 1), torch.tensor([[0], [1], [2], [3]]), 4)
        tensor(0.)
    """
    _check_choice("load_balance", gate_NK, index_NK)
    expect(num_experts >= 2, "load_balance", "num_experts", "of at least 2", num_experts)
    none_NE = gate_NK.new_zeros(gate_NK.shape[0], num_experts)
    return squared_cv(none_NE.scatter(1, index_NK, gate_NK).sum(dim=0), eps)


def commitment(x_ND: Features, memory_ED: Tensor, gate_NK: Tensor, index_NK: Tensor, eps: float = 1e-12) -> Tensor:
    """Pull rows towards the embeddings of the experts that serve them.

        -1/N sum_i sum_r gate_ir cos(x_i, sg[memory_e(i,r)])   (RbM, eq. 6)

    Args:
        x_ND: the layer's input rows, as routed; FeatureRows get no gradient.
        memory_ED: expert embeddings; get no gradient.
        gate_NK: routing weights; their gradient is kept.
        index_NK: int64 expert ids.
        eps: smallest norm.

    Returns:
        Scalar in [-1, 1]; 0 for no rows.

    Raises:
        ValueError: shapes differ.

    Examples:
        >>> gate, index = ops.cosine_topk(x, memory, k=2)
        >>> commitment(x, memory, gate, index).backward()
    """
    _check_choice("commitment", gate_NK, index_NK)
    if x_ND.dim() != 2 or memory_ED.dim() != 2 or x_ND.shape[1] != memory_ED.shape[1]:
        raise ArgumentError(
            f"commitment: expected 'memory' of shape [E, {x_ND.shape[-1]}] to match 'x', got {list(memory_ED.shape)}"
        )
    if x_ND.shape[0] == 0:
        return x_ND.new_zeros(()) if isinstance(x_ND, FeatureRows) else x_ND.sum() * 0.0
    # Dividing after the product avoids normalised copies of x, which would be as large as x, forward and backward.
    unit_ED = F.normalize(memory_ED.detach(), dim=1, eps=eps)
    if isinstance(x_ND, FeatureRows):
        dot_NE, norm_N1 = sparse_linear(x_ND, unit_ED), x_ND.norms().unsqueeze(1)
    else:
        dot_NE, norm_N1 = x_ND @ unit_ED.T, torch.linalg.vector_norm(x_ND, dim=1, keepdim=True)
    cosine_NE = dot_NE / norm_N1.clamp_min(eps)
    return -(gate_NK * cosine_NE.gather(1, index_NK)).sum() / x_ND.shape[0]


def self_similarity(memory_ED: Tensor, eps: float = 1e-12) -> Tensor:
    """Push expert embeddings apart on the sphere.

        1/E^2 sum_i sum_j cos(memory_i, sg[memory_j]), the diagonal included   (RbM, eq. 7)

    Args:
        memory_ED: expert embeddings; the gradient flows through one factor only.
        eps: smallest norm.

    Returns:
        Scalar in [-1, 1].

    Raises:
        ValueError: ``memory`` is not a matrix.

    Examples:
        >>> self_similarity(torch.eye(4))
        tensor(0.2500)
    """
    if memory_ED.dim() != 2:
        raise ArgumentError(f"self_similarity: expected 'memory' of shape [E, D], got {list(memory_ED.shape)}")
    unit_ED = F.normalize(memory_ED, dim=1, eps=eps)
    return (unit_ED @ unit_ED.detach().T).mean()


def _check_choice(op: str, gate_NK: Tensor, index_NK: Tensor) -> None:
    if gate_NK.dim() != 2 or gate_NK.shape != index_NK.shape:
        raise ArgumentError(
            f"{op}: expected 'gate' and 'index' of the same shape [N, k], "
            f"got {list(gate_NK.shape)} and {list(index_NK.shape)}; pass both as the router returned them"
        )
