"""Layers of GMoE and RbM networks, their routers and their losses."""

from __future__ import annotations

from . import losses
from .gmoe import AtomEncoder, BondEncoder, ExpertBatchNorm, GMoEConfig, GMoEConv, NoisyTopKGate, Routing
from .linear_experts import LinearExperts
from .rbm import (
    CosineMemoryRouter,
    MemoryRouterConfig,
    MemoryRouting,
    MoEConfig,
    MoELayer,
    ProjectedRouter,
    RbMConfig,
    RbMLayer,
)

__all__ = [
    "AtomEncoder",
    "BondEncoder",
    "CosineMemoryRouter",
    "ExpertBatchNorm",
    "GMoEConfig",
    "GMoEConv",
    "LinearExperts",
    "MemoryRouterConfig",
    "MemoryRouting",
    "MoEConfig",
    "MoELayer",
    "NoisyTopKGate",
    "ProjectedRouter",
    "RbMConfig",
    "RbMLayer",
    "Routing",
    "losses",
]
