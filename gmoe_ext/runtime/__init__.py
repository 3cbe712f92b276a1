"""Serve a packed student with NumPy alone, without importing torch.

>>> from gmoe_ext.runtime import PackedStudent
>>> student = PackedStudent.load("student.safetensors")
>>> logits = student.predict(x)

``gmoe_ext.export.pack`` writes the file; ``docs/reference/runtime_format.md`` describes its format. ``include_dir`` and
``library_dir`` locate the C library, ``libgmoe_runtime``.
"""

from __future__ import annotations

from .classifier import StudentClassifier
from .student import PackedStudent, include_dir, library_dir

__all__ = ["PackedStudent", "StudentClassifier", "include_dir", "library_dir"]
