"""The answers of an unfinished run, on disk beside the output, so that a killed run can continue.

The journal is one line of JSON that identifies the run, followed by a fixed-size record for each row in order, so the
file's size tells how many rows are done. Problems of rows are kept in a second file, which is written first.
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

from ..atomic_write import atomic_write
from ..errors import DataError

_ROWS_AT_ONCE = 1 << 16


class Journal:
    """Answers of an unfinished run.

    Args:
        path: the journal's file.
        identity: a line that is different for another input, student or form of the answers.
        record: dtype of a row's record.
        resume: continue the file at ``path`` if its identity is the same; False starts over.

    Attributes:
        rows: number of rows answered.

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
        """Drop the problems of rows that will be answered again."""
        with atomic_write(self._problems_path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
            file.writelines(f"{row}\t{text}\n" for row, text in self.problems() if row < self.rows)
        return self._problems_path.open("a", encoding="utf-8", newline="")

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._problems.close()
        self._file.close()

    def append(self, records: NDArray[Any], problems: Mapping[int, str]) -> None:
        """Add the records of the next rows, and the problems of some of them by their row in the file."""
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
        """Yield the rows that have problems, in order."""
        if not self._problems_path.exists():
            return
        with self._problems_path.open(encoding="utf-8", newline="") as file:
            for line in file:
                row, tab, text = line.rstrip("\n").partition("\t")
                if tab and line.endswith("\n"):  # a kill may have cut the last line
                    yield int(row), text

    def records(self) -> Iterator[NDArray[Any]]:
        """Yield all records in order, a few at a time."""
        self._file.seek(self._begin)
        for begin in range(0, self.rows, _ROWS_AT_ONCE):
            count = min(_ROWS_AT_ONCE, self.rows - begin)
            yield np.frombuffer(self._file.read(count * self._record.itemsize), self._record)

    def remove(self) -> None:
        """Delete the files of a finished run."""
        self._problems_path.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
