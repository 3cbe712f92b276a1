"""Naive PyTorch versions of every operator with the same names and signatures, differentiable and float64-capable."""

from .dropout import dropout
from .edges import aggregate, edge_aggregate, routed_edge_aggregate, routed_edge_mixture
from .experts import expert_linear, expert_norm, expert_plan, sparse_expert_linear, sparse_linear
from .graphs import random_walk, two_hop_graph
from .routing import cosine_topk, cosine_topk_update, memory_update, noisy_topk, topk_softmax

__all__ = [
    "aggregate",
    "cosine_topk",
    "cosine_topk_update",
    "dropout",
    "edge_aggregate",
    "expert_linear",
    "expert_norm",
    "expert_plan",
    "memory_update",
    "noisy_topk",
    "random_walk",
    "routed_edge_aggregate",
    "routed_edge_mixture",
    "sparse_expert_linear",
    "sparse_linear",
    "topk_softmax",
    "two_hop_graph",
]
