"""Losses of routing and distillation."""

from __future__ import annotations

from .distillation import PairTargets, kd, krd, neighbour_targets, own_targets, soften
from .routing import commitment, load_balance, self_similarity, squared_cv, sums

__all__ = [
    "PairTargets",
    "commitment",
    "kd",
    "krd",
    "load_balance",
    "neighbour_targets",
    "own_targets",
    "self_similarity",
    "soften",
    "squared_cv",
    "sums",
]
