"""Layers of GMoE and RbM networks, their routers and their losses."""

from __future__ import annotations

from . import losses
from .gmoe.encoders import AtomEncoder, BondEncoder
from .gmoe.expert_norm import ExpertBatchNorm
from .gmoe.experts import GMoEConfig
from .gmoe.gmoe_conv import GMoEConv
from .gmoe.noisy_gate import NoisyTopKGate, Routing
from .linear_experts import LinearExperts
from .rbm.memory_router import CosineMemoryRouter, MemoryRouterConfig, MemoryRouting
from .rbm.moe_layer import ExpertConfig, MoEConfig, MoELayer
from .rbm.projected_router import ProjectedRouter
from .rbm.rbm_layer import RbMConfig, RbMLayer

__all__ = [
    "AtomEncoder",
    "BondEncoder",
    "CosineMemoryRouter",
    "ExpertBatchNorm",
    "ExpertConfig",
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
