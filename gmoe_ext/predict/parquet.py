"""Parquet files of rows and of answers, a batch at a time. Needs pyarrow, which the extra ``predict`` installs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import extras
from ..errors import DataError
from .rows import Chunk, node_column, rows_at_once, to_float32

_READ_BUFFER = 1 << 16  # bytes of each column that are read ahead; by default it is a whole row group


class ParquetReader:
    """Reads columns of numbers in the file's order, or one column of lists; ``node`` or ``nodes`` holds nodes."""

    def __init__(self, path: Path) -> None:
        self._parquet, self._path = extras.load("pyarrow.parquet"), path
        with self._open() as file:
            self.total: int | None = file.metadata.num_rows
            self._groups = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
            schema = file.schema_arrow
        types = extras.load("pyarrow").types
        place = node_column(schema.names)
        self._node = None if place is None else schema.names[place]
        self.has_nodes = self._node is not None
        if self._node is not None and not types.is_integer(schema.field(self._node).type):
            raise DataError(f"expected column {self._node!r} of integers, got {schema.field(self._node).type}")
        indices = [name for name in schema.names if name.startswith("__index_level_")]
        self.notes = [f"columns that are not read, pandas' index: {', '.join(indices)}"] if indices else []
        self._columns = [name for name in schema.names if name not in (self._node, *indices)]
        kinds = [schema.field(name).type for name in self._columns]
        lists = [types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind) for kind in kinds]
        self._is_list = lists == [True]
        self.names = None if self._is_list else self._columns
        for name, kind in zip(self._columns, kinds, strict=True):
            value = kind.value_type if self._is_list else kind
            if not (types.is_integer(value) or types.is_floating(value) or types.is_boolean(value)):
                raise DataError(f"expected column {name!r} of numbers, or one column of lists of them; got {kind}")

    def _open(self) -> Any:
        return self._parquet.ParquetFile(self._path, buffer_size=_READ_BUFFER, pre_buffer=False)

    def chunks(self, begin: int, columns: int) -> Iterator[Chunk]:
        group = 0
        while group < len(self._groups) and begin >= self._groups[group]:
            begin -= self._groups[group]
            group += 1
        wanted = [*self._columns, *([self._node] if self._node else [])]
        with self._open() as file:
            batches = file.iter_batches(
                batch_size=rows_at_once(columns),
                row_groups=list(range(group, len(self._groups))),
                columns=wanted,
                use_threads=False,
            )
            for batch in batches:
                if begin >= batch.num_rows:
                    begin -= batch.num_rows
                    continue
                yield self._chunk(batch.slice(begin), columns)
                begin = 0

    def _chunk(self, batch: Any, columns: int) -> Chunk:
        problems: dict[int, str] = {}
        if self._is_list:
            x = _lists(batch.column(self._columns[0]), columns, problems)
        else:
            x = np.empty((batch.num_rows, len(self._columns)), np.float32)
            for i, name in enumerate(self._columns):
                column = batch.column(name)
                x[:, i] = to_float32(_numbers(column))
                for row in _nulls(column):
                    problems.setdefault(row, f"column {name!r} is null")
        nodes = None
        if self._node is not None:
            column = batch.column(self._node)
            for row in _nulls(column):
                problems.setdefault(row, f"column {self._node!r} is null")
            nodes = column.fill_null(0).to_numpy(zero_copy_only=False)
        return Chunk(x, nodes, problems)


def write_parquet(path: Path, records: Iterable[NDArray[Any]], classes: Sequence[str] | None) -> None:
    """Write the columns row, class, probability and, if classes have names, name; they are null in a bad row."""
    pyarrow, parquet = extras.load("pyarrow"), extras.load("pyarrow.parquet")
    fields = [("row", pyarrow.int64()), ("class", pyarrow.int32()), ("probability", pyarrow.float32())]
    names = None if not classes else pyarrow.array(list(classes), pyarrow.string())
    schema = pyarrow.schema([*fields, *([] if names is None else [("name", pyarrow.string())])])
    row = 0
    with parquet.ParquetWriter(path, schema) as writer:
        for some in records:
            bad = some["class"] < 0
            kind = pyarrow.array(some["class"], pyarrow.int32(), mask=bad)
            columns = [np.arange(row, row + len(some)), kind, pyarrow.array(some["probability"], mask=bad)]
            if names is not None:
                columns.append(names.take(kind))
            writer.write_table(pyarrow.table(columns, schema=schema))
            row += len(some)


def _nulls(column: Any) -> list[int]:
    if column.null_count == 0:
        return []
    found: list[int] = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)).tolist()
    return found


def _numbers(column: Any) -> NDArray[Any]:
    values: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return np.array([np.nan if v is None else v for v in values], float) if values.dtype == object else values


def _lists(column: Any, columns: int, problems: dict[int, str]) -> NDArray[np.float32]:
    """Convert a column of lists to rows; a list of another length than ``columns`` is a problem."""
    from pyarrow import compute, types

    flat = column.flatten()
    if types.is_fixed_size_list(column.type) and column.null_count == 0:
        return to_float32(_numbers(flat)).reshape(len(column), column.type.list_size)
    lengths = compute.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    if column.null_count == 0 and (lengths == columns).all():
        return to_float32(_numbers(flat)).reshape(len(column), columns)
    x = np.full((len(column), columns), np.nan, np.float32)
    for row, value in enumerate(column):
        if not value.is_valid:
            problems[row] = "the list is null"
        elif lengths[row] != columns:
            problems[row] = f"expected a list of {columns}, got {lengths[row]}"
        else:
            x[row] = to_float32(np.array(value.as_py(), float))
    return x
