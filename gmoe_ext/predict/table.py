"""Rows from .csv files: numbers, one row a line, with or without a line of names."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .chunk import NODE_COLUMNS, Chunk, rows_at_once, to_float32


def _is_number(cell: str) -> bool:
    if "_" in cell or not cell.isascii():  # numbers in Python, but not to loadtxt
        return False
    try:
        float(cell)
    except ValueError:
        return False
    return True


class CsvReader:
    """Lines of numbers. The first line is one of names if none of its cells is a number or empty."""

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
        """Rows from ``begin`` on."""
        with self._path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            lines = islice(_lines(file), begin + self._has_names, None)
            while some := list(islice(lines, rows_at_once(columns))):
                yield self._parse(some)

    def _parse(self, lines: list[str]) -> Chunk:
        problems: dict[int, str] = {}
        try:
            if not all(lines):
                raise ValueError("an empty line")  # which loadtxt would skip
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
    """Lines without their ends; empty ones only where another line follows."""
    empty = 0
    for line in file:
        text = line.strip()
        if not text:
            empty += 1
            continue
        yield from ("" for _ in range(empty))
        empty = 0
        yield text
