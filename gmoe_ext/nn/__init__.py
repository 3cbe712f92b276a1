"""Layers: gates, graph convolutions of experts, routers and their losses."""

from __future__ import annotations

from . import losses

__all__ = [
    "losses",
]
