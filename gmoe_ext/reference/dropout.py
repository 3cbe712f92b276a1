"""Naive dropout by counter-based random numbers, and the generator that random walks share with it."""

from __future__ import annotations

import torch
from torch import Tensor

from .edges import accumulator

_INCREMENT = 0x9E3779B97F4A7C15  # splitmix64: golden ratio increment and the two multipliers of its finaliser
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB


def dropout(x: Tensor, seed: Tensor, rate: float, slots: int = 1) -> Tensor:
    """Zero elements with probability ``rate`` and scale the others; see :func:`gmoe_ext.ops.dropout`."""
    dropped = min(round(rate * 2**16), 2**16 - 1)
    repeated_SD = x.repeat_interleave(slots, dim=0)
    word_W = torch.arange((repeated_SD.numel() + 3) // 4, device=x.device)
    bits_W = splitmix64(splitmix64(seed) + word_W * signed(_INCREMENT))
    level_W4 = torch.stack([shift_right(bits_W, 16 * part) & 0xFFFF for part in range(4)], dim=1)
    kept_SD = level_W4.flatten()[: repeated_SD.numel()].view(repeated_SD.shape) >= dropped
    factor_SD = kept_SD.to(accumulator(x)) * (2**16 / (2**16 - dropped))
    return (repeated_SD * factor_SD).to(x.dtype)


def splitmix64(state: Tensor) -> Tensor:
    """Return splitmix64 of a state, on int64 whose products and sums wrap like uint64."""
    z = state + signed(_INCREMENT)
    z = (z ^ shift_right(z, 30)) * signed(_MULTIPLIER_1)
    z = (z ^ shift_right(z, 27)) * signed(_MULTIPLIER_2)
    return z ^ shift_right(z, 31)


def shift_right(z: Tensor, bits: int) -> Tensor:
    """Shift right logically: int64 >> keeps the sign, so the copies of the sign bit are masked off."""
    return (z >> bits) & ((1 << (64 - bits)) - 1) if bits else z


def signed(value: int) -> int:
    """Return the int64 with the same 64 bits."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value
