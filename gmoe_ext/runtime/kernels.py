"""Kernels on NumPy arrays, for programs without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._library import library

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def cosine_topk(
    x: NDArray[np.floating[Any]], memory: NDArray[np.floating[Any]], k: int, eps: float = 1e-12
) -> tuple[NDArray[np.floating[Any]], NDArray[np.int64]]:
    """Route each row to its k nearest expert embeddings by cosine similarity, on NumPy arrays.

    gate_i = softmax of the k largest of x_i . q_e / (|x_i| |q_e|)   (RbM, eq. 3)

    Args:
        x: [N, D] rows; computed in float64 if this is float64, else in float32.
        memory: [E, D] one embedding per expert.
        k: experts per row, 1 <= k <= E.
        eps: smallest norm; a zero row has cosine 0 to every expert.

    Returns:
        gate [N, k] float32 (or float64), descending; index [N, k] int64. Equal cosines go to the lower expert.

    Raises:
        ValueError: shapes do not fit, or k is out of [1, E].
        TypeError: an array holds no floating-point numbers.

    Deterministic: yes, bit for bit.

    Example:
        >>> gate, index = cosine_topk(np.ones((1, 4), np.float32), np.eye(4, dtype=np.float32), k=2)
        >>> index.tolist()
        [[0, 1]]
    """
    result: tuple[NDArray[np.floating[Any]], NDArray[np.int64]] = library.cosine_topk(x, memory, k, eps)
    return result
