"""``python -m gmoe_ext.predict --student FILE --input ROWS [--output ANSWERS]``: answer rows with a packed student.

Rows come from .npy, .npz (array "x", optionally "nodes"), .csv or .parquet. Answers go to standard output, or to
--output: .csv and .parquet hold class, probability and the class's name if it has one, .npy holds the logits. Rows with
bad values get no answer; they are named in ANSWERS.bad_rows.csv. A run that was killed goes on where it was.

Exit codes: 0 done, 2 settings, 3 data, 130 or 143 interrupted.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TextIO

from ..errors import ConfigError, GmoeError, MissingExtraError
from ..runtime import PackedStudent
from .answers import CHOSEN, csv_header, csv_lines, records_of
from .score import answer, score

_LINE_EVERY_S = 10.0  # where the number of rows is not known


class _Interrupted(Exception):
    """SIGINT or SIGTERM came; the code is 128 + its number."""

    def __init__(self, signum: int) -> None:
        self.exit_code = 128 + signum


class _Progress:
    """A bar on a terminal; elsewhere a line for each tenth of the way."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._start, self._tenth, self._line_at = out, time.perf_counter(), 0, _LINE_EVERY_S
        self._bar = out.isatty()

    def __call__(self, done: int, resumed_at: int, total: int | None) -> None:
        elapsed = time.perf_counter() - self._start
        rate = (done - resumed_at) / max(elapsed, 1e-9)
        text = f"{done:,} rows  {rate:,.0f} rows/s"
        if total:
            left = (total - done) / max(rate, 1e-9)
            filled = 20 * done // total
            bar = "#" * filled + "." * (20 - filled)
            text = f"{bar} {done:,} of {total:,} rows  {rate:,.0f} rows/s  {left:.0f} s left"
        if self._bar:
            self._out.write(f"\r{text}\x1b[K")
        elif total and 10 * done // total > self._tenth:
            self._tenth = 10 * done // total
            self._out.write(f"predict    {done:,} of {total:,} rows, {rate:,.0f} rows/s\n")
        elif not total and elapsed > self._line_at:
            self._line_at = elapsed + _LINE_EVERY_S
            self._out.write(f"predict    {text}\n")
        self._out.flush()

    def close(self) -> None:
        if self._bar:
            self._out.write("\r\x1b[K")


def main(argv: Sequence[str] | None = None) -> int:
    """Answer the rows of a file; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m gmoe_ext.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--student", type=Path, required=True, help="file written by export.pack")
    parser.add_argument("--input", type=Path, required=True, help="rows: .npy, .npz, .csv or .parquet")
    parser.add_argument(
        "--output", type=Path, help="answers: .csv, .parquet or .npy (logits); default: standard output"
    )
    parser.add_argument("--resume", choices=["auto", "never"], default="auto", help="never: start over")
    parser.add_argument("--threads", type=int, help="most threads to use (default: all)")
    args = parser.parse_args(argv)
    former = {signum: signal.signal(signum, _interrupt) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        if args.output is None:
            _print_answers(args.student, args.input, args.threads)
        else:
            _write_answers(args.student, args.input, args.output, args.resume == "auto", args.threads)
        return 0
    except _Interrupted as stopped:
        hint = "" if args.output is None else "; the same command goes on where it was"
        print(f"interrupted{hint}", file=sys.stderr)
        return stopped.exit_code
    except (GmoeError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError | MissingExtraError) else 3
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise _Interrupted(signum)


def _write_answers(student: Path, rows: Path, output: Path, resume: bool, threads: int | None) -> None:
    progress, start = _Progress(sys.stderr), time.perf_counter()
    try:
        done = score(student, rows, output, resume=resume, threads=threads, on_rows=progress)
    finally:
        progress.close()
    resumed = f", {done.resumed_at:,} of them in an earlier run" if done.resumed_at else ""
    print(f"answers    {output} ({done.rows:,} rows{resumed}, {time.perf_counter() - start:.1f} s)")
    if done.bad_rows_path is not None:
        print(f"warning    {done.bad_rows:,} rows have no answer: {done.bad_rows_path}", file=sys.stderr)


def _print_answers(student_path: Path, rows: Path, threads: int | None) -> None:
    student = PackedStudent.load(student_path)
    if threads is not None:
        student.num_threads = threads
    classes, problems = student.classes, 0
    sys.stdout.write(csv_header(classes))
    for some in answer(student, rows):
        sys.stdout.write(csv_lines(some.begin, records_of(CHOSEN, some.logits), classes))
        for row, text in sorted(some.problems.items()):
            print(f"warning    row {row} has no answer: {text}", file=sys.stderr)
        problems += len(some.problems)
    if problems:
        print(f"warning    {problems:,} rows have no answer", file=sys.stderr)
