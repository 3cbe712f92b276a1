"""RbM (Routing by Memory): graph-free layers of linear experts, routed by memory or by a learned projection."""

from __future__ import annotations

from .memory_router import CosineMemoryRouter, MemoryRouterConfig, MemoryRouting
from .moe_layer import MoEConfig, MoELayer
from .projected_router import ProjectedRouter
from .rbm_layer import RbMConfig, RbMLayer

__all__ = [
    "CosineMemoryRouter",
    "MemoryRouterConfig",
    "MemoryRouting",
    "MoEConfig",
    "MoELayer",
    "ProjectedRouter",
    "RbMConfig",
    "RbMLayer",
]
