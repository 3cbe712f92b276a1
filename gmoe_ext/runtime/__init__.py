"""Serve a packed student with NumPy alone: no torch is imported, here or below.

>>> from gmoe_ext.runtime import PackedStudent
>>> student = PackedStudent.load("student.safetensors")
>>> logits = student.predict(x)

The file is made by ``gmoe_ext.export.pack``; its format is described in ``docs/runtime_format.md``. Beside it stand the
forward kernels on NumPy arrays, and a C library, ``libgmoe_runtime``, of which ``include_dir`` and ``library_dir`` say
where it is.
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
