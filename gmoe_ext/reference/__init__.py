"""Naive PyTorch of every operator, same names and signatures: fp64-capable, differentiable by autograd."""

from .cosine_topk import cosine_topk
from .expert_linear import expert_linear
from .expert_plan import expert_plan
from .memory_update import memory_update
from .topk_softmax import topk_softmax

__all__ = [
    "cosine_topk",
    "expert_linear",
    "expert_plan",
    "memory_update",
    "topk_softmax",
]
