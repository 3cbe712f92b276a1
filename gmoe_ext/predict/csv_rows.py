"""Rows of .csv files: whether the first line is a header, and cells that are not numbers. N rows, D columns."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, TextIO

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .rows import Chunk, node_column, rows_at_once, to_float32

Header = Literal["auto", "yes", "no"]

_MISSING = frozenset(("", "na", "n/a", "<na>", "#n/a", "nan", "null", "none", "-", "?"))  # texts of no value
_MOST_CHARACTERS = 1 << 24  # of a row whose quoted cells hold line ends


class CsvReader:
    """Reads lines of numbers, whose cells may be quoted.

    Args:
        path: the file.
        header: whether the first line names the columns; "auto" looks at it and refuses what may be either.
    """

    total: int | None = None

    def __init__(self, path: Path, header: Header = "auto") -> None:
        self._path = path
        with path.open(encoding="utf-8-sig", newline="") as file:
            first, *rest = [_cells(line) for line in islice(_lines(file), 2)] or [[]]
        cells = [cell.strip() for cell in first]
        self._width = len(cells)
        if not cells:
            raise DataError("expected rows of numbers, got an empty first line")
        self._has_names = header == "yes" or (header == "auto" and is_header(cells, rest[0] if rest else []))
        found = "names the columns" if self._has_names else "is a row"
        self.notes = [f"the first line {found}; --header tells otherwise"] if header == "auto" else []
        self._node_column = node_column(cells) if self._has_names else None
        self.has_nodes = self._node_column is not None
        named = [cell for i, cell in enumerate(cells) if i != self._node_column]
        self.names = named if self._has_names else None

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
            table = np.loadtxt(lines, np.float64, delimiter=",", ndmin=2, comments=None, quotechar='"')
            if table.shape != (len(lines), self._width):
                raise ValueError("rows of another width")
        except ValueError:
            table = np.stack([self._parse_line(line, row, problems) for row, line in enumerate(lines)])
        return self._split(table, problems)

    def _parse_line(self, line: str, row: int, problems: dict[int, str]) -> NDArray[np.float64]:
        cells = _cells(line)
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


def is_header(first: Sequence[str], second: Sequence[str]) -> bool:
    """Decide whether a line names columns, by its cells and those of the next line.

    Raises:
        DataError: it may be names or a row.
    """
    present = [cell for cell in first if cell.lower() not in _MISSING]
    numbers = [float(cell) for cell in present if _is_number(cell)]
    if present and not numbers:
        return True
    if len(numbers) == len(present) and not _may_be_labels(present, numbers, second):
        return False
    text = ",".join(first)
    raise DataError(
        f"the first line ({text[:60]}{'...' if len(text) > 60 else ''}) may name the columns or be a row\n"
        "  fix: pass --header yes or --header no"
    )


def _may_be_labels(cells: Sequence[str], numbers: Sequence[float], second: Sequence[str]) -> bool:
    """Whether numbers are evenly spaced (0,1,2 or 400,402,404), or whole and distinct above a row that is not whole."""
    if not cells:
        return False
    whole = all(cell.lstrip("+-").isdigit() for cell in cells)
    steps = np.diff(numbers)
    if len(numbers) > 2 and np.isfinite(numbers).all() and steps[0] != 0 and np.allclose(steps, steps[0], rtol=1e-6):
        return True
    if whole and (numbers == [0] or (len(numbers) == 2 and abs(steps[0]) == 1)):
        return True
    return whole and len(set(cells)) == len(cells) > 1 and not any(cell.lstrip("+-").isdigit() for cell in second)


def _lines(file: TextIO) -> Iterator[str]:
    """Yield rows without line ends; empty lines at the end of the file are dropped. Quoted cells may hold line ends."""
    empty = 0
    for line in file:
        while line.count('"') % 2:
            more = file.readline()
            line += more
            if not more or len(line) > _MOST_CHARACTERS:
                raise DataError(f"a quote is not closed in the row {line[:60]!r}")
        text = line.strip()
        if not text:
            empty += 1
            continue
        yield from ("" for _ in range(empty))
        empty = 0
        yield text


def _cells(line: str) -> list[str]:
    return next(csv.reader([line]), [])


def _is_number(cell: str) -> bool:
    if "_" in cell or not cell.isascii():  # numbers in Python, but not to loadtxt
        return False
    try:
        float(cell)
    except ValueError:
        return False
    return True
