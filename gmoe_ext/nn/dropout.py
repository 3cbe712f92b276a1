"""Dropout with cheap random numbers: on the CPU, drawing a double per element costs more than a small layer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import ArgumentError
from ..feature_rows import FeatureRows, Features

# One 64-bit draw decides four elements, so the drop rate is a multiple of 2^-16; the scale matches that exact rate.
_LEVELS = 1 << 16


def drop_features(x: Features, rate: float, slots: int | None = None) -> Features:
    """Drop values of features, for each of so many slots of a row or once for all of them.

    Args:
        x: [N, D]; of FeatureRows only stored values are drawn for, since the others are 0 either way.
        rate: as in ``dropout``.
        slots: K; None drops the same values for all slots of a row.

    Returns:
        Features like x; with slots FeatureRows of values [V, K], or a tensor [N * K, D].
    """
    if isinstance(x, FeatureRows):
        values = torch.ones_like(x.columns, dtype=x.dtype) if x.values is None else x.values
        dense = x.dense
        if slots is not None:
            values = values.unsqueeze(1).expand(-1, slots)
            dense = None if dense is None else dense.unsqueeze(1).expand(-1, slots, -1)
        return x.with_values(dropout(values, rate), None if dense is None else dropout(dense, rate))
    return dropout(x if slots is None else x.repeat_interleave(slots, dim=0), rate)


def dropout(x: Tensor, rate: float, training: bool = True) -> Tensor:
    """Zero elements with probability ``rate`` and scale the others by 1 / (1 - rate).

    Args:
        x: floating tensor of any shape.
        rate: in [0, 1); on the CPU, unless compiled, rounded to a multiple of 2^-16.
        training: False returns ``x``.

    Returns:
        Tensor like ``x``.

    Raises:
        ValueError: the rate is out of its range.

    Determinism: draws from torch's global generator on x's device; a compiled call draws other numbers.

    Examples:
        >>> dropout(torch.ones(4), 0.5)
        tensor([2., 0., 0., 2.])
    """
    if not 0.0 <= rate < 1.0:
        raise ArgumentError(f"dropout: expected 'rate' in [0, 1), got {rate}")
    if not training or rate == 0.0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():  # a traced random_ is not supported
        return functional.dropout(x, rate)
    dropped = round(rate * _LEVELS)
    if dropped == _LEVELS:
        return x * 0.0
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    level = words.view(torch.int16)[: x.numel()].view(x.shape)
    kept = (level >= dropped - _LEVELS // 2).to(x.dtype)
    return x * kept.mul_(_LEVELS / (_LEVELS - dropped))
