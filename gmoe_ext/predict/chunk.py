"""Rows on their way from a file to the student. N rows, D columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

NODE_COLUMNS = ("node", "nodes")  # in tables: the row of the student's position table, -1 for none

_CHUNK_BYTES = 8 << 20
_MOST_ROWS, _LEAST_ROWS = 16384, 64


@dataclass
class Chunk:
    """Consecutive rows of a file.

    Attributes:
        x: [N, D] float32; a row with a problem holds NaN.
        nodes: [N] int64, or None where the file has none.
        problems: what is wrong with a row, by its place in the chunk.
    """

    x: NDArray[np.float32]
    nodes: NDArray[np.int64] | None
    problems: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        bad = ~np.isfinite(self.x).all(1)
        for row in np.flatnonzero(bad).tolist():
            column = int(np.flatnonzero(~np.isfinite(self.x[row]))[0])
            self.problems.setdefault(row, f"feature {column} is {self.x[row, column]}")


class Reader(Protocol):
    """A file of rows."""

    total: int | None  # rows, where the file says so
    has_nodes: bool

    def chunks(self, begin: int, columns: int) -> Iterator[Chunk]:
        """Rows from ``begin`` to the end, a few at a time; ``columns`` is how many a row should have."""
        ...


def rows_at_once(columns: int) -> int:
    """Rows of a chunk, so that a wide table takes no more memory than a narrow one."""
    return max(_LEAST_ROWS, min(_MOST_ROWS, _CHUNK_BYTES // (4 * max(1, columns))))


def to_float32(values: NDArray[Any]) -> NDArray[np.float32]:
    """Values as the student takes them; too large ones become infinite, which makes their rows bad."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(values, np.float32)
