"""Losses of routing and distillation."""

from __future__ import annotations

from .load import importance, load, squared_cv

__all__ = [
    "importance",
    "load",
    "squared_cv",
]
