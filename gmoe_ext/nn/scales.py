"""Learnt positive factors, kept as their logarithms."""

from __future__ import annotations

import math

from torch import Tensor

# No learnt factor is larger, so that one bad step cannot overflow a layer (the released code's value).
MAX_FACTOR = 100.0


def learnt_factor(log_factor: Tensor) -> Tensor:
    """exp of a parameter, at most 100."""
    return log_factor.clamp(max=math.log(MAX_FACTOR)).exp()
