"""Losses of routing and distillation."""

from __future__ import annotations

from .balance import squared_cv, sums
from .distill import PairTargets, kd, krd, neighbour_targets, own_targets, soften
from .memory import commitment, load_balance, self_similarity

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
