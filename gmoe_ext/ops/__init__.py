"""Graph and mixture-of-experts operators: compiled kernels, or the PyTorch reference without the native library."""

from .aggregate import aggregate
from .cosine_topk import cosine_topk
from .cosine_topk_update import cosine_topk_update
from .dropout import dropout
from .edge_aggregate import edge_aggregate
from .expert_linear import expert_linear
from .expert_norm import expert_norm
from .expert_plan import expert_plan
from .memory_update import memory_update
from .noisy_topk import noisy_topk
from .random_walk import random_walk
from .routed_edge_aggregate import routed_edge_aggregate
from .routed_edge_mixture import routed_edge_mixture
from .sparse_expert_linear import sparse_expert_linear
from .sparse_linear import sparse_linear
from .topk_softmax import topk_softmax
from .two_hop_graph import two_hop_graph

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
