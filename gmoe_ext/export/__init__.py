"""Export a trained student: packed for ``gmoe_ext.runtime``, or as a graph for another runtime.

>>> from gmoe_ext.export import pack
>>> pack(student, "student.safetensors", class_names=data.class_names)

On the command line: ``python -m gmoe_ext.export RUN_DIR [--format packed|onnx|pt2]``.
"""

from __future__ import annotations

from .compare import Comparison, Rows, compare, random_rows
from .fold import preparation
from .graphs import ExportedStudent, load_onnx, load_pt2, save_onnx, save_pt2
from .pack import pack

__all__ = [
    "Comparison",
    "ExportedStudent",
    "Rows",
    "compare",
    "load_onnx",
    "load_pt2",
    "pack",
    "preparation",
    "random_rows",
    "save_onnx",
    "save_pt2",
]
