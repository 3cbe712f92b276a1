"""Answer a file of rows: streamed, resumable, with every bad row listed."""

from __future__ import annotations

import csv
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import extras
from ..arguments import check_file
from ..atomic_write import atomic_write, refuse_input
from ..errors import ConfigError, DataError
from ..runtime import PackedStudent
from .answers import OUTPUTS, record_dtype, to_records, write_csv, write_npy
from .csv_rows import CsvReader, Header
from .journal import Journal
from .parquet import ParquetReader, write_parquet
from .rows import ArrayReader, Chunk, Reader

_READERS: dict[str, Callable[[Path], Reader]] = {
    ".npy": ArrayReader,
    ".npz": ArrayReader,
    ".csv": CsvReader,
    ".parquet": ParquetReader,
}
_JOURNAL_VERSION = 2


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
        notes: sentences about what was decided or could not be checked.
    """

    rows: int
    resumed_at: int
    bad_rows: int
    bad_rows_path: Path | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    """A file of rows for a student.

    Attributes:
        student: who answers.
        path: the file.
        reader: reads it.
        order: columns of the file in the student's order; None: they are in it, or have no names to check.
        notes: sentences about what was decided or could not be checked.
    """

    student: PackedStudent
    path: Path
    reader: Reader
    order: list[int] | None
    notes: tuple[str, ...]


# What the readers of arrays, archives, texts and Parquet raise for damaged files; pyarrow's errors are among them.
_DAMAGE = (ArithmeticError, LookupError, ValueError, OSError, EOFError, NotImplementedError, RuntimeError, MemoryError)
_DAMAGE_OF_FORMATS = (zipfile.BadZipFile, zlib.error, struct.error, csv.Error)


def open_rows(student: PackedStudent, path: Path, header: Header = "auto") -> Question:
    """Open an input file and check its columns against the student.

    Raises:
        ConfigError: ``header`` is given for a file that is not .csv.
        DataError: the file is missing, damaged, of an unknown kind, not a table of numbers, or names other columns
            than the student's features.
        MissingExtraError: it is a .parquet file and pyarrow is not installed.
    """
    if path.suffix not in _READERS:
        raise DataError(f"--input {path}: expected a file named *{', *'.join(_READERS)}")
    if header != "auto" and path.suffix != ".csv":
        raise ConfigError(f"--header {header} is for .csv files, got --input {path}")
    check_file(path, "--input")
    with _named(path):
        reader = CsvReader(path, header) if path.suffix == ".csv" else _READERS[path.suffix](path)
        order, notes = _order(student, reader)
    return Question(student, path, reader, order, (*reader.notes, *notes))


def _order(student: PackedStudent, reader: Reader) -> tuple[list[int] | None, list[str]]:
    """Return the file's columns in the student's order, and what there is to say about it."""
    wanted, given = student.feature_names, reader.names
    if wanted is None or given is None:
        lacking = "the student's file has" if given else "the rows have" if wanted else ""
        return None, [f"{lacking} no names of features, so the order of columns is not checked"] if lacking else []
    positions = 0 if reader.has_nodes else student.info()["features"]["position_columns"]
    missing, others = [name for name in wanted if name not in given], [name for name in given if name not in wanted]
    if missing or len(others) != positions:
        raise DataError(
            f"expected the student's {len(wanted)} features by name{f' and {positions} positions' if positions else ''}"
            f"; missing: {_some(missing)}; not its features: {_some(others)}"
        )
    order = [given.index(name) for name in [*wanted, *others]]
    if order == sorted(order):
        return None, []
    return order, ["columns are put in the student's order by their names"]


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "") if names else "none"


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Raise errors of reading a file as DataError with its name."""
    try:
        yield
    except (*_DAMAGE, *_DAMAGE_OF_FORMATS) as error:
        raise DataError(f"--input {path}: {error or type(error).__name__}") from error


def load_student(path: str | os.PathLike[str], threads: int | None = None) -> PackedStudent:
    """Load a packed student that answers with at most ``threads`` threads."""
    if threads is not None and not 1 <= threads <= 1024:
        raise ConfigError(f"--threads {threads}: expected 1 to 1024")
    check_file(Path(path), "--student")
    student = PackedStudent.load(path)
    if threads is not None:
        student.num_threads = threads
    return student


def answer(student: PackedStudent, path: Path, begin: int = 0, header: Header = "auto") -> Iterator[Answered]:
    """Answer the rows of a file from ``begin`` to its end, a few at a time.

    Raises:
        DataError: the file is damaged, or its rows do not fit the student; else as :func:`open_rows`.
    """
    yield from answer_question(open_rows(student, path, header), begin)


def answer_question(question: Question, begin: int = 0) -> Iterator[Answered]:
    """Answer as :func:`answer` the rows of a file that is open."""
    student, reader = question.student, question.reader
    features = student.info()["features"]
    columns = features["columns"] + (0 if reader.has_nodes else features["position_columns"])
    with _named(question.path):
        for chunk in reader.chunks(begin, columns):
            if question.order is not None:
                chunk.x = chunk.x[:, question.order]
            logits = _logits(student, chunk, features["position_nodes"])
            yield Answered(begin, logits, {begin + row: text for row, text in chunk.problems.items()})
            begin += len(logits)
        if reader.total not in (None, begin):
            raise DataError(f"the file says that it has {reader.total:,} rows, but {begin:,} were read")


def _logits(student: PackedStudent, chunk: Chunk, known: int) -> NDArray[np.float32]:
    nodes = chunk.nodes
    if nodes is not None:
        outside = (nodes < -1) | (nodes >= known)
        for row in np.flatnonzero(outside).tolist():
            chunk.problems.setdefault(row, f"node {nodes[row]} is outside the student's table of {known}")
        nodes = np.where(outside, 0, nodes).astype(np.int64)  # these rows get no answer
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
    header: Header = "auto",
    on_rows: Callable[[int, int, int | None], None] | None = None,
) -> Summary:
    """Answer a file of rows into another file, in constant memory.

    Answers are collected beside the output, in ``OUTPUT.partial``; the output appears whole at the end. A run that was
    killed continues where it stopped, and its output is the same to the last byte. Columns with names are put in the
    student's order if it was packed with ``feature_names``.

    Args:
        student: file written by ``export.pack``.
        rows: .npy, .npz, .csv or .parquet; see ``docs/guides/predict.md``.
        output: .csv or .parquet (class, probability, name) or .npy (logits). A bad row has no class, or NaN for logits.
        resume: continue an unfinished run of the same student, rows and kind of output; False starts over.
        threads: maximum number of threads; by default the student's own choice.
        header: whether the first line of a .csv file names the columns; "auto" decides by its cells.
        on_rows: called as on_rows(rows answered, rows an earlier run had answered, all rows or None if not known).

    Raises:
        ConfigError: the output is of an unknown kind, cannot be written, or would replace the rows or the student.
        DataError: the student or the rows are missing or damaged or do not fit each other, it cannot be told whether a
            .csv file has a header, no row has an answer, or another run is writing the same output.
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
    partial, bad_rows = (output.with_name(output.name + ending) for ending in (".partial", ".bad_rows.csv"))
    for path in (output, partial, bad_rows):
        refuse_input(path, "--output", rows, Path(student))
    question = open_rows(load_student(student, threads), rows, header)
    record = record_dtype(output.suffix, question.student.num_outputs)
    with Journal(partial, _identity(question, output.suffix), record, resume) as journal:
        resumed_at = journal.rows
        for some in answer_question(question, resumed_at):
            journal.append(to_records(record, some.logits), some.problems)
            if on_rows is not None:
                on_rows(journal.rows, resumed_at, question.reader.total)
        bad = sum(1 for _ in journal.problems())
        if bad == journal.rows > 0:
            row, problem = next(journal.problems())
            journal.remove()
            raise DataError(f"--input {rows}: none of its {bad:,} rows has an answer; row {row}: {problem}")
        _write_bad_rows(journal, bad_rows, bad)
        _write(journal, output, question.student)
        journal.remove()
        return Summary(journal.rows, resumed_at, bad, bad_rows if bad else None, question.notes)


def _identity(question: Question, suffix: str) -> bytes:
    student, status = question.student, question.path.stat()
    identity: dict[str, Any] = {
        "gmoe_ext.predict": _JOURNAL_VERSION,
        "student": student.sha256,
        "input": str(question.path.resolve()),
        "input_bytes": status.st_size,
        "input_changed_ns": status.st_mtime_ns,
        "columns": question.reader.names,
        "output": suffix,
        "cpu": student.info()["cpu"],  # kernels of another instruction set round differently
    }
    return json.dumps(identity).encode() + b"\n"


def _write_bad_rows(journal: Journal, path: Path, count: int) -> None:
    if count == 0:
        return path.unlink(missing_ok=True)
    with atomic_write(path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row", "problem"])
        writer.writerows(journal.problems())


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
