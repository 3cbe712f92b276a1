"""All experiments of a GPU."""

from __future__ import annotations

from ..claim import Experiment
from ..settings import Settings
from . import dispatch, gradients, inference, routing, sparse, training

FILES = (routing, dispatch, sparse, gradients, inference, training)


def experiments(settings: Settings) -> list[Experiment]:
    """Every experiment, file by file."""
    return [experiment for file in FILES for experiment in file.experiments(settings)]
