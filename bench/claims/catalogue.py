"""All experiments."""

from __future__ import annotations

from . import aggregate, cosine, expert_linear, layers, student, training
from .claim import Experiment
from .settings import Settings

FILES = (cosine, expert_linear, aggregate, layers, student, training)


def experiments(settings: Settings) -> list[Experiment]:
    """Every experiment, file by file."""
    return [experiment for file in FILES for experiment in file.experiments(settings)]
