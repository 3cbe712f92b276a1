"""Serve a packed student with NumPy alone: no torch is imported, here or below.

>>> from gmoe_ext.runtime import PackedStudent
>>> student = PackedStudent.load("student.safetensors")
>>> logits = student.predict(x)

``gmoe_ext.export.pack`` writes the file; ``docs/reference/runtime_format.md`` describes its format. The module also has
the forward kernels on NumPy arrays and a C library, ``libgmoe_runtime``; ``include_dir`` and ``library_dir`` return
where it is installed.
"""

from __future__ import annotations

from ._library import include_dir, library_dir
from .classifier import StudentClassifier
from .kernels import aggregate, cosine_topk, expert_linear, topk_softmax
from .student import PackedStudent

__all__ = [
    "PackedStudent",
    "StudentClassifier",
    "aggregate",
    "cosine_topk",
    "expert_linear",
    "include_dir",
    "library_dir",
    "topk_softmax",
]
