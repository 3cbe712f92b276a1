"""Losses of routing and distillation."""

from __future__ import annotations

from .distill import PairTargets, kd, krd, neighbour_targets, own_targets, soften
from .load import importance, load, squared_cv
from .memory import commitment, load_balance, self_similarity

__all__ = [
    "PairTargets",
    "commitment",
    "importance",
    "kd",
    "krd",
    "load",
    "load_balance",
    "neighbour_targets",
    "own_targets",
    "self_similarity",
    "soften",
    "squared_cv",
]
