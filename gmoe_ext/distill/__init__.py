"""Distillation from a trained GNN to a graph-free student: targets, positions and the start of its experts."""

from __future__ import annotations

from .kmeans_init import kmeans_start
from .positions import deepwalk, extend_positions, student_inputs
from .reliability import ReliableSampler, reliability
from .targets import EpochTargets, StudentTargets, soft_targets

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
