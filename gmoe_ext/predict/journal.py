"""The answers of an unfinished run, on disk beside the output, so that a killed run can continue.

The journal is one line of JSON that identifies the run, followed by a fixed-size record for each row in order. A second
file lists the problems of rows, and after those of each few rows how many rows are done and a checksum of everything so
far: what was not written whole, or has changed since, is answered again.
"""

from __future__ import annotations

import fcntl
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TextIO

import numpy as np
from numpy.typing import NDArray

from ..atomic_write import atomic_write, writing
from ..errors import ConfigError, DataError

_ROWS_AT_ONCE = 1 << 16
_DONE = re.compile(r"=([0-9]{1,18})\t([0-9]{1,10})\n")  # rows, checksum


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
        DataError: another process is answering into the same file, or it is something else.
        ConfigError: it cannot be written.
    """

    def __init__(self, path: Path, identity: bytes, record: np.dtype[Any], resume: bool) -> None:
        self.path, self._record = path, record
        self._problems_path = path.with_name(path.name + ".bad_rows")
        self._begin = len(identity)
        try:
            self._file: IO[bytes] = path.open("a+b")
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise DataError(f"{path}: another run is answering into this output") from error
        self._file.seek(0)
        head = self._file.read(self._begin)
        if head and not head.startswith(identity.partition(b":")[0]):
            self._file.close()
            raise DataError(f"{path}: expected the answers of an unfinished run; move this file away")
        if not resume or head != identity:
            with writing(path):
                self._file.truncate(0)
                self._file.write(identity)
                self._file.flush()
        self.rows = self._checksum = 0
        self._verify()
        self._file.truncate(self._begin + self.rows * record.itemsize)
        self._problems: TextIO = self._problems_path.open("a", encoding="utf-8", newline="")

    def _verify(self) -> None:
        """Count the rows whose records and problems are whole, and drop the problems of later ones."""
        whole = (self._file.seek(0, os.SEEK_END) - self._begin) // self._record.itemsize
        self._file.seek(self._begin)
        some: list[str] = []
        with atomic_write(self._problems_path) as draft, draft.open("w", encoding="utf-8", newline="") as kept:
            for line in self._lines():
                some.append(line)
                if (done := _DONE.fullmatch(line)) is None:
                    continue
                rows = int(done[1])
                if not self.rows < rows <= whole:
                    break
                records = self._file.read((rows - self.rows) * self._record.itemsize)
                checksum = self._add(records, some[:-1])
                if checksum != int(done[2]):
                    break
                kept.writelines(some)
                self.rows, self._checksum, some = rows, checksum, []

    def _add(self, records: bytes, problems: list[str]) -> int:
        return zlib.crc32("".join(problems).encode(), zlib.crc32(records, self._checksum))

    def _lines(self) -> Iterator[str]:
        if self._problems_path.exists():
            with self._problems_path.open(encoding="utf-8", errors="replace", newline="\n") as file:
                yield from file

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with writing(self.path), self._file, self._problems:  # what could not be written is tried once more
            pass

    def append(self, records: NDArray[Any], problems: Mapping[int, str]) -> None:
        """Add the records of the next rows, and the problems of some of them by their row in the file."""
        texts = ((row, problems[row].replace("\n", " ").replace("\r", " ")) for row in sorted(problems))
        lines, written = [f"{row}\t{text}\n" for row, text in texts], records.tobytes()
        self.rows, self._checksum = self.rows + len(records), self._add(written, lines)
        with writing(self.path):
            self._problems.write("".join(lines) + f"={self.rows}\t{self._checksum}\n")
            self._problems.flush()
            self._file.write(written)
            self._file.flush()
            os.fsync(self._file.fileno())

    def problems(self) -> Iterator[tuple[int, str]]:
        """Yield the rows that have problems, in order."""
        for line in self._lines():
            if not line.startswith("="):
                row, _, text = line.rstrip("\n").partition("\t")
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
