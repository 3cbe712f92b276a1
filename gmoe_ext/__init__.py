"""Mixtures of experts on graphs: train GMoE, distill to RbM, serve without torch.

Submodules load on first use, so that ``import gmoe_ext.runtime`` never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import data, export, models, nn, ops, reference, runtime
    from ._native import backend, build_info
    from .feature_rows import FeatureRows
    from .graph import Graph

__all__ = [
    "FeatureRows",
    "Graph",
    "__version__",
    "backend",
    "build_info",
    "data",
    "export",
    "models",
    "nn",
    "ops",
    "reference",
    "runtime",
]

_MODULES = ("data", "distill", "errors", "export", "models", "nn", "ops", "reference", "runtime")
_NAMES = {"FeatureRows": "feature_rows", "Graph": "graph", "backend": "_native", "build_info": "_native"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _NAMES:
        return getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("gmoe_ext")
    except PackageNotFoundError:  # imported from a source tree that is not installed
        import tomllib
        from pathlib import Path

        pyproject = Path(__file__).resolve().parents[1] / "pyproject.toml"
        return f"{tomllib.loads(pyproject.read_text())['project']['version']}+source"


def __dir__() -> list[str]:
    return sorted(__all__)
