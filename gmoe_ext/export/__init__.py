"""Turn a trained student into a file that answers without torch.

>>> from gmoe_ext.export import pack
>>> pack(student, "student.safetensors", class_names=data.class_names)

On the command line: ``python -m gmoe_ext.export RUN_DIR``.
"""

from __future__ import annotations

from .compare import Comparison, Rows, compare, random_rows
from .pack import pack, preparation

__all__ = ["Comparison", "Rows", "compare", "pack", "preparation", "random_rows"]
