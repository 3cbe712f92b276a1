"""Layers: gates, graph convolutions of experts, routers and their losses."""

from __future__ import annotations

from . import losses
from .experts import LinearExperts
from .rbm_layer import RbMLayer
from .routers import CosineMemoryRouter, MemoryRouting

__all__ = [
    "CosineMemoryRouter",
    "LinearExperts",
    "MemoryRouting",
    "RbMLayer",
    "losses",
]
