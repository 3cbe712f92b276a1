"""The three losses on an RbM layer's expert embeddings (RbM, eqs. 6-8).

N rows, E experts, K chosen experts a row, D router dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def _check_choice(op: str, gate_NK: Tensor, index_NK: Tensor) -> None:
    if gate_NK.dim() != 2 or gate_NK.shape != index_NK.shape:
        raise ValueError(
            f"{op}: expected 'gate' and 'index' of one shape [N, k], "
            f"got {list(gate_NK.shape)} and {list(index_NK.shape)}; pass both as the router returned them"
        )


def commitment(x_ND: Tensor, memory_ED: Tensor, gate_NK: Tensor, index_NK: Tensor, eps: float = 1e-12) -> Tensor:
    """Pull rows towards the embeddings of the experts that serve them.

    -1/N sum_i sum_r gate_ir cos(x_i, sg[memory_e(i,r)])   (RbM, eq. 6)

    Args:
        x_ND: the layer's input rows, as routed.
        memory_ED: expert embeddings; get no gradient.
        gate_NK: routing weights; their gradient is kept.
        index_NK: int64 expert ids.
        eps: smallest norm.

    Returns:
        Scalar in [-1, 1]; 0 for no rows.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> gate, index = ops.cosine_topk(x, memory, k=2)
        >>> commitment(x, memory, gate, index).backward()
    """
    _check_choice("commitment", gate_NK, index_NK)
    if x_ND.dim() != 2 or memory_ED.dim() != 2 or x_ND.shape[1] != memory_ED.shape[1]:
        raise ValueError(
            f"commitment: expected 'memory' of shape [E, {x_ND.shape[-1]}] to match 'x', got {list(memory_ED.shape)}"
        )
    if x_ND.shape[0] == 0:
        return x_ND.sum() * 0.0
    # Divided after the product: no unit rows of x, which would be as large as x, forward and backward.
    dot_NE = x_ND @ F.normalize(memory_ED.detach(), dim=1, eps=eps).T
    norm_N1: Tensor = torch.linalg.vector_norm(x_ND, dim=1, keepdim=True)
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

    Example:
        >>> self_similarity(torch.eye(4))
        tensor(0.2500)
    """
    if memory_ED.dim() != 2:
        raise ValueError(f"self_similarity: expected 'memory' of shape [E, D], got {list(memory_ED.shape)}")
    unit_ED = F.normalize(memory_ED, dim=1, eps=eps)
    return (unit_ED @ unit_ED.detach().T).mean()


def load_balance(gate_NK: Tensor, index_NK: Tensor, num_experts: int, eps: float = 1e-10) -> Tensor:
    """Even out how much weight each expert receives.

    Var(Load) / (Mean(Load)^2 + eps), Load_e = sum of the gates sent to e, unbiased variance   (RbM, eq. 8)

    Args:
        gate_NK: routing weights; the gradient flows through them to the router's input.
        index_NK: int64 expert ids in [0, num_experts).
        num_experts: E >= 2.
        eps: keeps an empty batch finite.

    Returns:
        Scalar >= 0, 0 when every expert carries the same load.

    Raises:
        ValueError: shapes differ or fewer than two experts.

    Example:
        >>> load_balance(torch.ones(4, 1), torch.tensor([[0], [1], [2], [3]]), 4)
        tensor(0.)
    """
    _check_choice("load_balance", gate_NK, index_NK)
    if num_experts < 2:
        raise ValueError(f"load_balance: expected 'num_experts' of at least 2, got {num_experts}")
    # A row holds each expert once, so this scatter never meets itself and stays deterministic on any device.
    load_E = torch.zeros(gate_NK.shape[0], num_experts, dtype=gate_NK.dtype, device=gate_NK.device)
    load_E = load_E.scatter(1, index_NK, gate_NK).sum(dim=0)
    return load_E.var(correction=1) / (load_E.mean().square() + eps)
