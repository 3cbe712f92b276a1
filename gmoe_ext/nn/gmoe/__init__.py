"""GMoE (Graph Mixture of Experts): layers whose nodes each choose k of n graph convolutions."""

from __future__ import annotations

from .encoders import AtomEncoder, BondEncoder
from .expert_norm import ExpertBatchNorm
from .experts import GMoEConfig
from .gmoe_conv import GMoEConv
from .noisy_gate import NoisyTopKGate, Routing

__all__ = ["AtomEncoder", "BondEncoder", "ExpertBatchNorm", "GMoEConfig", "GMoEConv", "NoisyTopKGate", "Routing"]
