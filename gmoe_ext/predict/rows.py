"""Rows on their way from a file to the student, a few at a time: .npy, .npz and .csv files. N rows, D columns."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol, TextIO

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
        nodes: [N] int64, or None where the file has none.
        problems: what is wrong with a row, by its position in the chunk.
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
    """A file of rows.

    Attributes:
        total: number of rows, or None if the file does not tell.
        has_nodes: whether it names nodes.
    """

    total: int | None
    has_nodes: bool

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


class _Array:
    """An array in an open stream, whose rows are read in order."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self.shape, fortran, self.dtype = read(stream)
        if self.dtype.kind not in "fiub":
            raise DataError(f"expected {name!r} of real numbers, got {self.dtype}")
        if fortran and len(self.shape) > 1 and min(self.shape) > 1:
            raise DataError(
                f"{name!r} is in Fortran order, so its rows cannot be streamed; save np.ascontiguousarray({name})"
            )
        self._stream, self._row_shape = stream, self.shape[1:]
        self._row_bytes = int(np.prod(self._row_shape, dtype=np.int64)) * self.dtype.itemsize

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
            return _Array(stack.enter_context(self._path.open("rb")), "x"), None
        archive = stack.enter_context(zipfile.ZipFile(self._path))
        if "x.npy" not in archive.namelist():
            raise DataError(f"expected an array 'x', got {', '.join(archive.namelist()) or 'none'}")
        x = _Array(stack.enter_context(archive.open("x.npy")), "x")
        if "nodes.npy" not in archive.namelist():
            return x, None
        return x, _Array(stack.enter_context(archive.open("nodes.npy")), "nodes")

    def chunks(self, begin: int, columns: int) -> Iterator[Chunk]:
        with ExitStack() as stack:
            x, nodes = self._open(stack)
            if self._single:
                if begin == 0:
                    yield Chunk(to_float32(x.read(x.shape[0])[None]), None)
                return
            for array in (x, nodes):
                if array is not None:
                    array.skip(begin)
            size = rows_at_once(columns)
            for row in range(begin, x.shape[0], size):
                count = min(size, x.shape[0] - row)
                node = None if nodes is None else nodes.read(count).astype(np.int64)
                yield Chunk(to_float32(x.read(count)), node)


class CsvReader:
    """Reads lines of numbers. The first line holds names if none of its cells is a number or empty."""

    total: int | None = None

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = next(csv.reader([file.readline()]), [])
        cells = [cell.strip() for cell in first]
        self._has_names = bool(cells) and not any(cell == "" or _is_number(cell) for cell in cells)
        self._width = len(cells)
        if self._width == 0:
            raise DataError("expected rows of numbers, got an empty first line")
        found = [i for i, cell in enumerate(cells) if self._has_names and cell in NODE_COLUMNS]
        self._node_column = found[0] if found else None
        self.has_nodes = bool(found)

    def chunks(self, begin: int, columns: int) -> Iterator[Chunk]:
        with self._path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            lines = islice(_lines(file), begin + self._has_names, None)
            while some := list(islice(lines, rows_at_once(columns))):
                yield self._parse(some)

    def _parse(self, lines: list[str]) -> Chunk:
        problems: dict[int, str] = {}
        try:
            if not all(lines):
                raise ValueError("an empty line")  # loadtxt would skip it
            table = np.loadtxt(lines, delimiter=",", dtype=np.float64, ndmin=2, comments=None)
            if table.shape != (len(lines), self._width):
                raise ValueError("rows of another width")
        except ValueError:
            table = np.stack([self._parse_line(line, row, problems) for row, line in enumerate(lines)])
        return self._split(table, problems)

    def _parse_line(self, line: str, row: int, problems: dict[int, str]) -> NDArray[np.float64]:
        cells = line.split(",")
        values = np.full(self._width, np.nan)
        if len(cells) != self._width:
            problems[row] = f"expected {self._width} cells, got {len(cells) if line else 'an empty line'}"
            return values
        for column, cell in enumerate(cells):
            if not _is_number(cell):
                problems[row] = f"cell {column} is {cell.strip()[:32]!r}"
                return values
        return np.array([float(cell) for cell in cells])

    def _split(self, table: NDArray[np.float64], problems: dict[int, str]) -> Chunk:
        if self._node_column is None:
            return Chunk(to_float32(table), None, problems)
        column = table[:, self._node_column]
        whole = np.isfinite(column) & (np.abs(column) < 2.0**53) & (column == np.floor(column))
        for row in np.flatnonzero(~whole).tolist():
            problems.setdefault(row, f"node is {column[row]}")
        nodes = np.where(whole, column, -1).astype(np.int64)
        return Chunk(to_float32(np.delete(table, self._node_column, 1)), nodes, problems)


def _lines(file: TextIO) -> Iterator[str]:
    """Yield lines without line ends; empty lines at the end of the file are dropped."""
    empty = 0
    for line in file:
        text = line.strip()
        if not text:
            empty += 1
            continue
        yield from ("" for _ in range(empty))
        empty = 0
        yield text


def _is_number(cell: str) -> bool:
    if "_" in cell or not cell.isascii():  # numbers in Python, but not to loadtxt
        return False
    try:
        float(cell)
    except ValueError:
        return False
    return True
