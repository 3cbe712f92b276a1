"""topk_softmax: the gate of GMoE, a softmax over the k best experts of each row."""

from __future__ import annotations

from torch import Tensor

from .. import reference


def topk_softmax(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Route each row to its k highest logits.

    gate_i = softmax of the k largest of logits_i   (GMoE, eq. 3; the other experts get exactly 0)

    Args:
        logits: [N, E] one score per row and expert, float32 or bfloat16 (float64 in tests).
        k: experts per row, 1 <= k <= E.

    Returns:
        gate [N, k] in the dtype of logits, descending; index [N, k] int64. Equal logits go to the lower expert;
        NaN ranks highest, as in torch.sort, and makes the gates of its row NaN.

    Raises:
        ValueError: logits is not 2-D, or k is out of [1, E].
        TypeError: logits is not floating point.

    Deterministic: yes, bit for bit, for any number of threads.

    Example:
        >>> gate, index = topk_softmax(torch.tensor([[0.0, 2.0, 2.0, 1.0]]), k=2)
        >>> index.tolist(), gate.tolist()
        ([[1, 2]], [[0.5, 0.5]])
    """
    if logits.dim() != 2:
        raise ValueError(f"gmoe::topk_softmax: expected 'logits' of shape [N, E], got {list(logits.shape)}")
    if not logits.is_floating_point():
        raise TypeError(f"gmoe::topk_softmax: expected 'logits' of a floating dtype, got {logits.dtype}")
    if not 1 <= k <= logits.shape[1]:
        raise ValueError(f"gmoe::topk_softmax: expected 'k' in [1, {logits.shape[1]}], got {k}")
    return reference.topk_softmax(logits, k)
