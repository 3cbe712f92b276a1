"""Rows on their way from a file to the student, a few at a time: .npy and .npz files. N rows, D columns."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

NODE_COLUMNS = ("node", "nodes")  # column of a table that holds rows of the student's position table, -1 for none

_CHUNK_BYTES = 8 << 20
_MOST_ROWS, _LEAST_ROWS = 16384, 64


@dataclass
class Chunk:
    """Consecutive rows of a file.

    Attributes:
        x: [N, D] float32; a row with a problem holds NaN.
        nodes: [N] integers as the file has them, or None where it has none.
        problems: what is wrong with a row, by its position in the chunk.
    """

    x: NDArray[np.float32]
    nodes: NDArray[np.integer[Any]] | None
    problems: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        bad = ~np.isfinite(self.x).all(1)
        for row in np.flatnonzero(bad).tolist():
            column = int(np.flatnonzero(~np.isfinite(self.x[row]))[0])
            self.problems.setdefault(row, f"feature {column} is {self.x[row, column]}")


class Reader(Protocol):
    """A file of rows.

    Attributes:
        total: number of rows, or None if the file does not tell.
        has_nodes: whether it names nodes.
        names: names of the columns of features in the file's order, or None if they have none.
        notes: sentences about what was decided or left out.
    """

    total: int | None
    has_nodes: bool
    names: list[str] | None
    notes: list[str]

    def chunks(self, begin: int, columns: int) -> Iterator[Chunk]:
        """Yield the rows from ``begin`` to the end, a few at a time; ``columns`` is the expected width of a row."""
        ...


def rows_at_once(columns: int) -> int:
    """Choose the rows of a chunk so that a wide table takes no more memory than a narrow one."""
    return max(_LEAST_ROWS, min(_MOST_ROWS, _CHUNK_BYTES // (4 * max(1, columns))))


def to_float32(values: NDArray[Any]) -> NDArray[np.float32]:
    """Convert values to the student's type; too large ones become infinite, which makes their rows bad."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(values, np.float32)


def node_column(names: Sequence[str]) -> int | None:
    """Find the column that holds nodes.

    Raises:
        DataError: two columns have the same name, or two hold nodes.
    """
    for i, name in enumerate(names):
        if name in names[:i]:
            raise DataError(f"expected columns of different names, got {name!r} twice")
    found = [i for i, name in enumerate(names) if name in NODE_COLUMNS]
    if len(found) > 1:
        raise DataError("expected one column of nodes, got 'node' and 'nodes'")
    return found[0] if found else None


class _Array:
    """An array in an open stream of so many bytes, whose rows are read in order."""

    def __init__(self, stream: IO[bytes], size: int, name: str) -> None:
        try:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            self.shape, fortran, self.dtype = read(stream)
        except Exception as error:  # whatever Python's own tokenizer and parser raise for a damaged header
            raise DataError(f"the header of array {name!r} is damaged: {error}") from error
        if self.dtype.kind not in "fiub":
            raise DataError(f"expected {name!r} of real numbers, got {self.dtype}")
        if fortran and len(self.shape) > 1 and min(self.shape) > 1:
            raise DataError(
                f"{name!r} is in Fortran order, so its rows cannot be streamed; save np.ascontiguousarray({name})"
            )
        self._stream, self._row_shape = stream, self.shape[1:]
        self._row_bytes = math.prod(self._row_shape) * self.dtype.itemsize
        expected, left = math.prod(self.shape) * self.dtype.itemsize, size - stream.tell()
        if expected != left or any(n < 0 for n in self.shape):
            raise DataError(f"array {name!r} of shape {list(self.shape)} takes {expected} bytes, the file has {left}")

    def skip(self, rows: int) -> None:
        self._stream.seek(rows * self._row_bytes, 1)

    def read(self, rows: int) -> NDArray[Any]:
        data = self._stream.read(rows * self._row_bytes)
        if len(data) != rows * self._row_bytes:
            raise DataError("the file ends before its array does")
        return np.frombuffer(data, self.dtype).reshape(rows, *self._row_shape)


class ArrayReader:
    """Reads an .npy file, or the array ``x`` of an .npz file and its optional array ``nodes``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.names: list[str] | None = None
        self.notes: list[str] = []
        with ExitStack() as stack:
            x, nodes = self._open(stack)
            if len(x.shape) not in (1, 2):
                raise DataError(f"expected rows of shape [rows, features], got {list(x.shape)}")
            self._single = len(x.shape) == 1
            self.total: int | None = 1 if self._single else x.shape[0]
            self.has_nodes = nodes is not None
            if nodes is not None and (nodes.dtype.kind not in "iu" or nodes.shape != (self.total,)):
                raise DataError(
                    f"expected 'nodes' of {self.total} integers, got {nodes.dtype} of shape {list(nodes.shape)}"
                )

    def _open(self, stack: ExitStack) -> tuple[_Array, _Array | None]:
        if self._path.suffix == ".npy":
            return _Array(stack.enter_context(self._path.open("rb")), self._path.stat().st_size, "x"), None
        archive = stack.enter_context(zipfile.ZipFile(self._path))
        names = archive.namelist()
        if names.count("x.npy") != 1 or names.count("nodes.npy") > 1:
            raise DataError(f"expected an array 'x', got {', '.join(names) or 'none'}")
        others = sorted(name.removesuffix(".npy") for name in {*names} - {"x.npy", "nodes.npy"})
        self.notes = [f"arrays that are not read: {', '.join(others)}"] if others else []
        arrays = [
            _Array(stack.enter_context(archive.open(f"{name}.npy")), archive.getinfo(f"{name}.npy").file_size, name)
            for name in ("x", "nodes")
            if f"{name}.npy" in names
        ]
        return arrays[0], arrays[1] if len(arrays) > 1 else None

    def chunks(self, begin: int, columns: int) -> Iterator[Chunk]:
        assert self.total is not None
        with ExitStack() as stack:
            x, nodes = self._open(stack)
            for array in (x, nodes):
                if array is not None and begin > 0:
                    array.skip(begin)
            size = rows_at_once(columns)
            for row in range(begin, self.total, size):
                count = min(size, self.total - row)
                values = x.read(x.shape[0])[None] if self._single else x.read(count)
                yield Chunk(to_float32(values), None if nodes is None else nodes.read(count))
