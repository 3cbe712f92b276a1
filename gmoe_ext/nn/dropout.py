"""Dropout whose numbers come from one drawn seed, so that every device and any number of threads drops the same."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from ..errors import ArgumentError
from ..feature_rows import FeatureRows, Features


def drop_features(x: Features, rate: float, slots: int | None = None) -> Features:
    """Drop values of features, for each of so many slots of a row or once for all of them.

    Args:
        x: [N, D]; of FeatureRows only stored values are drawn for, since the others are 0 either way.
        rate: as in ``dropout``.
        slots: K; None drops the same values for all slots of a row.

    Returns:
        Features like x; with slots FeatureRows of values [V, K], or a tensor [N * K, D].
    """
    if not isinstance(x, FeatureRows):
        return dropout(x, rate) if slots is None else _drop(x, rate, slots)
    values = torch.ones_like(x.columns, dtype=x.dtype) if x.values is None else x.values
    if slots is None:
        return x.with_values(dropout(values, rate), None if x.dense is None else dropout(x.dense, rate))
    values = _drop(values.unsqueeze(1), rate, slots).view(-1, slots)
    dense = None if x.dense is None else _drop(x.dense, rate, slots).view(len(x.dense), slots, -1)
    return x.with_values(values, dense)


def dropout(x: Tensor, rate: float, training: bool = True) -> Tensor:
    """Zero elements with probability ``rate`` and scale the others by 1 / (1 - rate).

    Args:
        x: floating tensor of any shape.
        rate: in [0, 1), taken as the nearest multiple of 2^-16 below 1.
        training: False returns ``x``.

    Returns:
        Tensor like ``x``.

    Raises:
        ValueError: the rate is out of its range.

    Determinism: draws a seed from torch's global generator on x's device; see ``ops.dropout``.

    Examples:
        >>> dropout(torch.ones(4), 0.5)
        tensor([2., 0., 0., 2.])
    """
    if not 0.0 <= rate < 1.0:
        raise ArgumentError(f"dropout: expected 'rate' in [0, 1), got {rate}")
    if not training or rate == 0.0:
        return x
    return _drop(x if x.dim() == 2 else x.reshape(1, -1), rate).view(x.shape)


def _drop(x_ND: Tensor, rate: float, slots: int = 1) -> Tensor:
    seed = torch.randint(-(2**63), 2**63 - 1, (1,), device=x_ND.device)
    return ops.dropout(x_ND, seed, rate, slots)
