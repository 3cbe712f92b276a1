"""From a trained GNN to a student without a graph: targets, positions and the start of its experts."""

from __future__ import annotations

from .positions import deepwalk, extend_positions, student_inputs
from .start import kmeans_start
from .targets import EpochTargets, ReliableSampler, StudentTargets, reliability
from .teacher import soft_targets

__all__ = [
    "EpochTargets",
    "ReliableSampler",
    "StudentTargets",
    "deepwalk",
    "extend_positions",
    "kmeans_start",
    "reliability",
    "soft_targets",
    "student_inputs",
]
