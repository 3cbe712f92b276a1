"""Answer a file of rows with a packed student, without torch: ``python -m gmoe_ext.predict --student F --input ROWS``.

>>> from gmoe_ext.predict import score
>>> score("student.safetensors", "rows.parquet", "answers.parquet")

Rows are streamed in constant memory; see ``docs/guides/predict.md``.
"""

from __future__ import annotations

from .command import main
from .score import Summary, score

__all__ = ["Summary", "main", "score"]
