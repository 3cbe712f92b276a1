"""Layers: gates, graph convolutions of experts, routers and their losses."""

from __future__ import annotations

from . import losses
from .encoders import AtomEncoder, BondEncoder
from .experts import LinearExperts
from .gates import NoisyTopKGate, Routing
from .gmoe_conv import GMoEConv
from .moe_layer import MoELayer
from .norms import ExpertBatchNorm
from .rbm_layer import RbMLayer
from .routers import CosineMemoryRouter, MemoryRouting, ProjectedRouter

__all__ = [
    "AtomEncoder",
    "BondEncoder",
    "CosineMemoryRouter",
    "ExpertBatchNorm",
    "GMoEConv",
    "LinearExperts",
    "MemoryRouting",
    "MoELayer",
    "NoisyTopKGate",
    "ProjectedRouter",
    "RbMLayer",
    "Routing",
    "losses",
]
