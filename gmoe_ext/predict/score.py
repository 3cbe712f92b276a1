"""Answers to a file of rows: streamed, resumable, every bad row named."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import secrets
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DataError
from ..runtime import PackedStudent
from .answers import OUTPUTS, record_of, records_of, write_csv, write_npy, write_parquet
from .arrays import ArrayReader
from .chunk import Chunk, Reader
from .journal import Journal
from .parquet import ParquetReader, arrow
from .table import CsvReader

_READERS: dict[str, Callable[[Path], Reader]] = {
    ".npy": ArrayReader,
    ".npz": ArrayReader,
    ".csv": CsvReader,
    ".parquet": ParquetReader,
}
_JOURNAL_VERSION = 1


@dataclass(frozen=True)
class Answered:
    """Logits of some rows.

    Attributes:
        begin: number of the first row in the file, from 0.
        logits: [N, C]; NaN for a bad row.
        problems: what is wrong with bad rows, by their number in the file.
    """

    begin: int
    logits: NDArray[np.float32]
    problems: dict[int, str]


@dataclass(frozen=True)
class Summary:
    """A finished run.

    Attributes:
        rows: how many the input has.
        resumed_at: rows that an earlier run had answered.
        bad_rows: how many have no answer.
        bad_rows_path: the file that names them, or None if there are none.
    """

    rows: int
    resumed_at: int
    bad_rows: int
    bad_rows_path: Path | None


def open_rows(path: Path) -> Reader:
    """The reader of an input file.

    Raises:
        DataError: the file is missing, damaged, of an unknown kind or not a table of numbers.
        MissingExtraError: it is a .parquet file, and pyarrow is not installed.
    """
    if path.suffix not in _READERS:
        raise DataError(f"--input {path}: expected a file named *{', *'.join(_READERS)}")
    if not path.is_file():
        raise DataError(f"--input {path}: no such file")
    with _named(path):
        return _READERS[path.suffix](path)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of reading a file name it. pyarrow's own are ValueError and OSError, too."""
    try:
        yield
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"--input {path}: {error}") from error


def answer(student: PackedStudent, path: Path, begin: int = 0) -> Iterator[Answered]:
    """Answer the rows of a file from ``begin`` to its end, some at a time.

    Raises:
        DataError: the file is damaged, or its rows do not fit the student.
    """
    reader, features = open_rows(path), student.info()["features"]
    inputs = features["columns"] + features["position_columns"]
    columns = features["columns"] if reader.has_nodes else inputs
    with _named(path):
        for chunk in reader.chunks(begin, columns):
            logits = _logits(student, chunk, features["position_nodes"])
            yield Answered(begin, logits, {begin + row: text for row, text in chunk.problems.items()})
            begin += len(logits)


def _logits(student: PackedStudent, chunk: Chunk, known: int) -> NDArray[np.float32]:
    nodes = chunk.nodes
    if nodes is not None:
        outside = (nodes < -1) | (nodes >= known)
        for row in np.flatnonzero(outside).tolist():
            chunk.problems.setdefault(row, f"node {nodes[row]} is outside the student's table of {known}")
        nodes = np.where(outside, -1, nodes)
    logits = student.predict(chunk.x, nodes)
    for row in np.flatnonzero(~np.isfinite(logits).all(1)).tolist():
        chunk.problems.setdefault(row, "the student's answer is not finite")
    logits[list(chunk.problems)] = np.nan
    return logits


def score(
    student: str | os.PathLike[str],
    rows: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    resume: bool = True,
    threads: int | None = None,
    on_rows: Callable[[int, int, int | None], None] | None = None,
) -> Summary:
    """Answer a file of rows into another file, in constant memory.

    The answers are kept beside the output, in ``OUTPUT.partial``, until all are there; the output then appears in one
    step. A run that was killed goes on where it was, and its output is the same to the last byte.

    Args:
        student: file written by ``export.pack``.
        rows: .npy, .npz, .csv or .parquet; see ``docs/guides/predict.md``.
        output: .csv or .parquet (class, probability, name) or .npy (logits). A bad row has no class, or NaN for logits.
        resume: go on with an unfinished run of the same student, rows and kind of output; False starts over.
        threads: most threads to answer with; None is the student's own choice.
        on_rows: called as on_rows(rows answered, rows an earlier run had answered, rows in all or None).

    Raises:
        ConfigError: the output is of an unknown kind.
        DataError: the student or the rows are missing, damaged or do not fit each other, or another run is at work.
        MissingExtraError: .parquet is asked for, and pyarrow is not installed.

    Deterministic: yes, bit for bit, on one processor type.

    Example:
        >>> score("student.safetensors", "rows.parquet", "answers.parquet").bad_rows
        0
    """
    rows, output = Path(rows), Path(output)
    if output.suffix not in OUTPUTS:
        raise ConfigError(f"--output {output}: expected a file named *{', *'.join(OUTPUTS)}")
    if output.suffix == ".parquet":
        arrow()
    packed, reader = PackedStudent.load(student), open_rows(rows)
    if threads is not None:
        packed.num_threads = threads
    record = record_of(output.suffix, packed.num_outputs)
    journal_path = output.with_name(output.name + ".partial")
    with Journal(journal_path, _identity(packed, rows, output.suffix), record, resume) as journal:
        resumed_at = journal.rows
        for some in answer(packed, rows, resumed_at):
            journal.append(records_of(record, some.logits), some.problems)
            if on_rows is not None:
                on_rows(journal.rows, resumed_at, reader.total)
        bad, bad_path = _write_bad_rows(journal, output)
        _write(journal, output, packed)
        journal.remove()
        return Summary(journal.rows, resumed_at, bad, bad_path)


def _identity(student: PackedStudent, rows: Path, suffix: str) -> bytes:
    with open(student.path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    status = rows.stat()
    what: dict[str, Any] = {
        "gmoe_ext.predict": _JOURNAL_VERSION,
        "student": digest,
        "input": str(rows.resolve()),
        "input_bytes": status.st_size,
        "input_changed_ns": status.st_mtime_ns,
        "output": suffix,
        "cpu": student.info()["cpu"],  # another one rounds differently
    }
    return json.dumps(what).encode() + b"\n"


@contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """A file to write that becomes ``path`` at the end, or is removed."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _write_bad_rows(journal: Journal, output: Path) -> tuple[int, Path | None]:
    path, count = output.with_name(output.name + ".bad_rows.csv"), 0
    with _draft(path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
        write = csv.writer(file, lineterminator="\n").writerow
        write(["row", "problem"])
        for row, text in journal.problems():
            write([row, text])
            count += 1
    if count == 0:
        path.unlink()
    return count, path if count else None


def _write(journal: Journal, output: Path, student: PackedStudent) -> None:
    with _draft(output) as draft:
        if output.suffix == ".parquet":
            write_parquet(draft, journal.records(), student.classes)
            return
        with draft.open("xb") as file:
            if output.suffix == ".csv":
                write_csv(file, journal.records(), student.classes)
            else:
                write_npy(file, journal.records(), journal.rows, student.num_outputs)
