"""All experiments, by device."""

from __future__ import annotations

from . import dispatch, features, gradients, layers, routing, sparse, student, training
from .claim import Experiment
from .settings import Settings


def experiments(settings: Settings) -> list[Experiment]:
    """List every experiment of the CPU."""
    found = (routing, dispatch, sparse, layers, student, training, features)
    return [experiment for module in found for experiment in module.experiments(settings)]


def gpu_experiments(settings: Settings) -> list[Experiment]:
    """List every experiment of a GPU; the tests also build them on the CPU."""
    found = (routing, dispatch, sparse, gradients, layers, training)
    return [experiment for module in found for experiment in module.gpu_experiments(settings)]
