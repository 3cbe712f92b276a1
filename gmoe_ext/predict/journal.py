"""What a run has answered so far, on disk beside the output, so that a killed run goes on where it was.

The journal is one line of JSON that says what is being answered, and then a fixed-size record for each row in order:
how many rows are done is the file's size. What is wrong with rows stands in a second file, which is written first.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TextIO

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

_ROWS_AT_ONCE = 1 << 16


class Journal:
    """Answers of an unfinished run.

    Args:
        path: the journal's file.
        identity: a line that differs for every other input, student or form of the answers.
        record: dtype of a row's record.
        resume: go on with what is there if the identity is the same; else start over.

    Attributes:
        rows: how many are answered.

    Raises:
        DataError: another process is answering into the same file.
    """

    def __init__(self, path: Path, identity: bytes, record: np.dtype[Any], resume: bool) -> None:
        self.path, self._record = path, record
        self._problems_path = path.with_name(path.name + ".bad_rows")
        self._begin = len(identity)
        self._file: IO[bytes] = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise DataError(f"{path}: another run is answering into this output") from error
        self._file.seek(0)
        if not resume or self._file.read(self._begin) != identity:
            self._file.truncate(0)
            self._file.write(identity)
            self._file.flush()
        self.rows = (self._file.seek(0, os.SEEK_END) - self._begin) // record.itemsize
        self._file.truncate(self._begin + self.rows * record.itemsize)  # a record may be half written
        self._problems = self._keep_problems()

    def _keep_problems(self) -> TextIO:
        """Drop what was said of rows that are to be answered again."""
        draft = self._problems_path.with_name(self._problems_path.name + ".draft")
        with draft.open("w", encoding="utf-8", newline="") as file:
            for row, text in self.problems():
                if row < self.rows:
                    file.write(f"{row}\t{text}\n")
        draft.replace(self._problems_path)
        return self._problems_path.open("a", encoding="utf-8", newline="")

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._problems.close()
        self._file.close()

    def append(self, records: NDArray[Any], problems: Mapping[int, str]) -> None:
        """Answers of the next rows, and what is wrong with some of them by their row in the file."""
        for row in sorted(problems):
            text = problems[row].replace("\n", " ").replace("\r", " ")
            self._problems.write(f"{row}\t{text}\n")
        self._problems.flush()
        if problems:
            os.fsync(self._problems.fileno())
        self._file.write(records.tobytes())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows += len(records)

    def problems(self) -> Iterator[tuple[int, str]]:
        """Rows with problems, in order."""
        if not self._problems_path.exists():
            return
        with self._problems_path.open(encoding="utf-8", newline="") as file:
            for line in file:
                row, tab, text = line.rstrip("\n").partition("\t")
                if tab and line.endswith("\n"):  # the last line of a killed run may be cut
                    yield int(row), text

    def records(self) -> Iterator[NDArray[Any]]:
        """All records in order, some at a time."""
        self._file.seek(self._begin)
        for begin in range(0, self.rows, _ROWS_AT_ONCE):
            count = min(_ROWS_AT_ONCE, self.rows - begin)
            yield np.frombuffer(self._file.read(count * self._record.itemsize), self._record)

    def remove(self) -> None:
        """The run is finished."""
        self._problems_path.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
