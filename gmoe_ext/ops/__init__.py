"""The operators. Each is one name in one file; compiled where the native library is there, else the reference."""

from .expert_linear import expert_linear
from .expert_plan import expert_plan
from .memory_update import memory_update
from .topk_softmax import topk_softmax

__all__ = [
    "expert_linear",
    "expert_plan",
    "memory_update",
    "topk_softmax",
]
