"""Kernels on NumPy arrays, for programs without torch: forward only, one thread, the interpreter lock released."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._library import library

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]
    Integers = NDArray[np.integer[Any]]


def cosine_topk(x: Floats, memory: Floats, k: int, eps: float = 1e-12) -> tuple[Floats, NDArray[np.int64]]:
    """Route each row to its k nearest expert embeddings by cosine similarity.

    gate_i = softmax of the k largest of x_i . q_e / (|x_i| |q_e|)   (RbM, eq. 3)

    Args:
        x: [N, D] rows; computed in float64 if x and memory are float64, else in float32.
        memory: [E, D] one embedding per expert.
        k: experts per row, 1 <= k <= E.
        eps: smallest norm; a zero row has cosine 0 to every expert.

    Returns:
        gate [N, k], descending; index [N, k] int64. Equal cosines go to the lower expert.

    Raises:
        ValueError: shapes do not fit, or k is out of [1, E].
        TypeError: an array holds no floating-point numbers.

    Deterministic: yes, bit for bit.

    Example:
        >>> gate, index = cosine_topk(np.ones((1, 4), np.float32), np.eye(4, dtype=np.float32), k=2)
        >>> index.tolist()
        [[0, 1]]
    """
    routing: tuple[Floats, NDArray[np.int64]] = library.cosine_topk(x, memory, k, eps)
    return routing


def topk_softmax(logits: Floats, k: int) -> tuple[Floats, NDArray[np.int64]]:
    """Softmax over the k largest logits of each row (GMoE, eq. 3).

    Args:
        logits: [N, E], computed in float64 or float32.
        k: experts per row, 1 <= k <= E.

    Returns:
        gate [N, k], descending; index [N, k] int64. Equal logits go to the lower expert.

    Raises:
        ValueError: k is out of [1, E], or logits have no two dimensions.
        TypeError: logits hold no floating-point numbers.

    Deterministic: yes, bit for bit.

    Example:
        >>> gate, index = topk_softmax(np.array([[0.0, 2.0, 1.0]]), k=2)
        >>> index.tolist()
        [[1, 2]]
    """
    gates: tuple[Floats, NDArray[np.int64]] = library.topk_softmax(logits, k)
    return gates


def expert_linear(x: Floats, weight: Floats, bias: Floats | None, gate: Floats, index: Integers) -> Floats:
    """Mix the linear experts each row is routed to.

    y_i = sum_r gate_ir (W_e x_i + b_e), e = index_ir   (GMoE, eq. 2; RbM, eq. 1)

    Args:
        x: [N, D] rows; computed in float64 if x and weight are float64, else in float32.
        weight: [E, F, D].
        bias: [E, F], or None.
        gate: [N, k].
        index: [N, k] expert ids.

    Returns:
        y [N, F].

    Raises:
        ValueError: shapes do not fit.
        TypeError: an array holds no floating-point numbers, or index no integers.
        GraphIndexError: an index is out of [0, E).

    Deterministic: yes, bit for bit.

    Example:
        >>> gate, index = cosine_topk(x, memory, k=2)
        >>> y = expert_linear(x, weight, bias, gate, index)
    """
    y: Floats = library.expert_linear(x, weight, bias, gate, index)
    return y


def aggregate(offsets: Integers, columns: Integers, x: Floats, weight: Floats | None = None) -> Floats:
    """Sum the rows of each node's neighbours over compressed sparse rows.

    y_i = sum_j w_ij x_j   (the sum of GMoE, eq. 2)

    Args:
        offsets: [N + 1]; the neighbours of node i are columns[offsets[i]:offsets[i + 1]].
        columns: [M] rows of x.
        x: [S, D], computed in float64 or float32.
        weight: [M], or None for 1.

    Returns:
        y [N, D].

    Raises:
        ValueError: shapes do not fit, or offsets do not rise from 0 to M.
        TypeError: x or weight hold no floating-point numbers, or an index array no integers.
        GraphIndexError: a column is out of [0, S).

    Deterministic: yes, bit for bit.

    Example:
        >>> aggregate(np.array([0, 2]), np.array([0, 1]), np.array([[1.0], [2.0]]))
        array([[3.]])
    """
    y: Floats = library.aggregate(offsets, columns, x, weight)
    return y
