"""Answer a file of rows: streamed, resumable, with every bad row listed."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import extras
from ..atomic_write import atomic_write
from ..errors import ConfigError, DataError
from ..runtime import PackedStudent
from .answers import OUTPUTS, record_dtype, to_records, write_csv, write_npy
from .journal import Journal
from .parquet import ParquetReader, write_parquet
from .rows import ArrayReader, Chunk, CsvReader, Reader

_READERS: dict[str, Callable[[Path], Reader]] = {
    ".npy": ArrayReader,
    ".npz": ArrayReader,
    ".csv": CsvReader,
    ".parquet": ParquetReader,
}
_JOURNAL_VERSION = 1


@dataclass(frozen=True)
class Answered:
    """The logits of consecutive rows.

    Attributes:
        begin: number of the first row in the file, from 0.
        logits: [N, C]; NaN in a bad row.
        problems: what is wrong with each bad row, by its number in the file.
    """

    begin: int
    logits: NDArray[np.float32]
    problems: dict[int, str]


@dataclass(frozen=True)
class Summary:
    """What a finished run did.

    Attributes:
        rows: number of rows of the input.
        resumed_at: number of them that an earlier run had answered.
        bad_rows: number of them without an answer.
        bad_rows_path: the file that lists those, or None if there are none.
    """

    rows: int
    resumed_at: int
    bad_rows: int
    bad_rows_path: Path | None


def open_rows(path: Path) -> Reader:
    """Open an input file.

    Raises:
        DataError: the file is missing, damaged, of an unknown kind or not a table of numbers.
        MissingExtraError: it is a .parquet file and pyarrow is not installed.
    """
    if path.suffix not in _READERS:
        raise DataError(f"--input {path}: expected a file named *{', *'.join(_READERS)}")
    if not path.is_file():
        raise DataError(f"--input {path}: no such file")
    with _named(path):
        return _READERS[path.suffix](path)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Raise errors of reading a file as DataError with its name; pyarrow's are ValueError and OSError too."""
    try:
        yield
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"--input {path}: {error}") from error


def load_student(path: str | os.PathLike[str], threads: int | None = None) -> PackedStudent:
    """Load a packed student that answers with at most ``threads`` threads."""
    if threads is not None and not 1 <= threads <= 1024:
        raise ConfigError(f"--threads {threads}: expected 1 to 1024")
    student = PackedStudent.load(path)
    if threads is not None:
        student.num_threads = threads
    return student


def answer(student: PackedStudent, path: Path, begin: int = 0) -> Iterator[Answered]:
    """Answer the rows of a file from ``begin`` to its end, a few at a time.

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

    Answers are collected beside the output, in ``OUTPUT.partial``; the output appears whole at the end. A run that was
    killed continues where it stopped, and its output is the same to the last byte.

    Args:
        student: file written by ``export.pack``.
        rows: .npy, .npz, .csv or .parquet; see ``docs/guides/predict.md``.
        output: .csv or .parquet (class, probability, name) or .npy (logits). A bad row has no class, or NaN for logits.
        resume: continue an unfinished run of the same student, rows and kind of output; False starts over.
        threads: maximum number of threads; by default the student's own choice.
        on_rows: called as on_rows(rows answered, rows an earlier run had answered, all rows or None if not known).

    Raises:
        ConfigError: the output is of an unknown kind.
        DataError: the student or the rows are missing or damaged or do not fit each other, or another run is writing
            the same output.
        MissingExtraError: a .parquet file is read or written and pyarrow is not installed.

    Deterministic: yes, bit for bit, on one type of processor.

    Examples:
        >>> score("student.safetensors", "rows.parquet", "answers.parquet").bad_rows
        0
    """
    rows, output = Path(rows), Path(output)
    if output.suffix not in OUTPUTS:
        raise ConfigError(f"--output {output}: expected a file named *{', *'.join(OUTPUTS)}")
    if output.suffix == ".parquet":
        extras.load("pyarrow.parquet")  # before anything is answered
    packed, reader = load_student(student, threads), open_rows(rows)
    record = record_dtype(output.suffix, packed.num_outputs)
    journal_path = output.with_name(output.name + ".partial")
    with Journal(journal_path, _identity(packed, rows, output.suffix), record, resume) as journal:
        resumed_at = journal.rows
        for some in answer(packed, rows, resumed_at):
            journal.append(to_records(record, some.logits), some.problems)
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
    identity: dict[str, Any] = {
        "gmoe_ext.predict": _JOURNAL_VERSION,
        "student": digest,
        "input": str(rows.resolve()),
        "input_bytes": status.st_size,
        "input_changed_ns": status.st_mtime_ns,
        "output": suffix,
        "cpu": student.info()["cpu"],  # kernels of another instruction set round differently
    }
    return json.dumps(identity).encode() + b"\n"


def _write_bad_rows(journal: Journal, output: Path) -> tuple[int, Path | None]:
    path, count = output.with_name(output.name + ".bad_rows.csv"), sum(1 for _ in journal.problems())
    if count == 0:
        path.unlink(missing_ok=True)
        return 0, None
    with atomic_write(path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row", "problem"])
        writer.writerows(journal.problems())
    return count, path


def _write(journal: Journal, output: Path, student: PackedStudent) -> None:
    with atomic_write(output) as draft:
        if output.suffix == ".parquet":
            write_parquet(draft, journal.records(), student.classes)
            return
        with draft.open("xb") as file:
            if output.suffix == ".csv":
                write_csv(file, journal.records(), student.classes)
            else:
                write_npy(file, journal.records(), journal.rows, student.num_outputs)
