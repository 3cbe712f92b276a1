"""Serve a packed student with NumPy alone: no torch is imported, here or below.

>>> from gmoe_ext.runtime import PackedStudent
>>> student = PackedStudent.load("student.safetensors")
>>> logits = student.predict(x)

The file is made by ``gmoe_ext.export.pack``; its format is described in ``docs/runtime_format.md``.
"""

from __future__ import annotations

from .kernels import cosine_topk
from .student import PackedStudent

__all__ = ["PackedStudent", "cosine_topk"]
