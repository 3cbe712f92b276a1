"""Answers in the form that the output's name asks for: .csv and .parquet hold classes, .npy holds logits."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .parquet import arrow

CHOSEN = np.dtype([("class", "<i4"), ("probability", "<f4")])  # class -1: the row was bad
OUTPUTS = (".csv", ".npy", ".parquet")


def record_of(suffix: str, outputs: int) -> np.dtype[Any]:
    """What is kept of a row until the output is written."""
    return np.dtype(("<f4", (outputs,))) if suffix == ".npy" else CHOSEN


def records_of(record: np.dtype[Any], logits: NDArray[np.float32]) -> NDArray[Any]:
    """Records [N] of logits [N, C]; those of a bad row are NaN."""
    if record is not CHOSEN:
        return logits.astype("<f4", copy=False)
    good = np.all(np.isfinite(logits), axis=1)
    known = np.where(good[:, None], logits, 0)
    chosen = np.zeros(len(logits), CHOSEN)
    best = known.argmax(1)
    # The softmax of the largest logit: 1 / sum exp(l - max).
    largest = known[np.arange(len(known)), best]
    chosen["class"] = np.where(good, best, -1)
    chosen["probability"] = np.where(good, 1 / np.exp(known - largest[:, None]).sum(1), np.nan)
    return chosen


def csv_header(classes: Sequence[str] | None) -> str:
    """The first line."""
    return "row,class,probability" + (",name" if classes else "") + "\n"


def csv_lines(begin: int, chosen: NDArray[Any], classes: Sequence[str] | None) -> str:
    """Lines of rows from ``begin`` on; a bad row has nothing but its number."""
    text = io.StringIO()
    write = csv.writer(text, lineterminator="\n").writerow
    for row, (kind, probability) in enumerate(chosen.tolist(), begin):
        name = [] if not classes else [classes[kind] if kind >= 0 else ""]
        write([row, kind, f"{probability:.6f}", *name] if kind >= 0 else [row, "", "", *name])
    return text.getvalue()


def write_csv(file: IO[bytes], records: Iterable[NDArray[Any]], classes: Sequence[str] | None) -> None:
    """Row, class, probability and, where classes have names, the name."""
    file.write(csv_header(classes).encode())
    row = 0
    for some in records:
        file.write(csv_lines(row, some, classes).encode())
        row += len(some)


def write_npy(file: IO[bytes], records: Iterable[NDArray[Any]], rows: int, outputs: int) -> None:
    """Logits [rows, outputs] in float32."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, outputs)}
    np.lib.format.write_array_header_1_0(file, header)
    for some in records:
        file.write(some.tobytes())


def write_parquet(path: Path, records: Iterable[NDArray[Any]], classes: Sequence[str] | None) -> None:
    """Columns row, class, probability and, where classes have names, name; null in a bad row."""
    pyarrow, parquet = arrow()
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
