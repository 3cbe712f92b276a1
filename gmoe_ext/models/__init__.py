"""Models by name: ``build("gcn", ...)``, ``build("gmoe-gcn", ...)``, ``build("rbm", ...)``."""

from __future__ import annotations

from .mlp import MLP
from .output import Output
from .rbm import RbM
from .registry import Model, build, names, register

__all__ = ["MLP", "Model", "Output", "RbM", "build", "names", "register"]
