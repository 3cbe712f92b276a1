"""Models by name: ``build("gcn", ...)``, ``build("gmoe-gcn", ...)``, ``build("rbm", ...)``."""

from __future__ import annotations

from .output import Output
from .registry import Model, build, names, register

__all__ = ["Model", "Output", "build", "names", "register"]
