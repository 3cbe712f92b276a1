"""``python -m gmoe_ext.predict --student FILE --input ROWS [--output ANSWERS]``: answer rows with a packed student.

Rows come from .npy, .npz (array "x", optionally "nodes"), .csv or .parquet. Answers go to standard output or to
--output: .csv and .parquet hold the class, its probability and its name if it has one, .npy holds the logits. Rows with
bad values get no answer and are listed in ANSWERS.bad_rows.csv; a file without a good row is an error. A killed run
continues when the command is repeated.

Exit codes: 0 done, 2 settings, 3 data, 130 or 143 interrupted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack

from .. import arguments
from ..errors import DataError, GmoeError
from ..terminal import Interrupted, Progress, catch_signals, report_error, tell
from .answers import CHOSEN, csv_header, csv_lines, to_records
from .score import answer_question, load_student, open_rows, score


def main(argv: Sequence[str] | None = None) -> int:
    """Answer the rows of a file and return the exit code."""
    parser = arguments.Parser(
        prog="python -m gmoe_ext.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--student", type=arguments.path, required=True, help="file written by export.pack")
    parser.add_argument("--input", type=arguments.path, required=True, help="rows: .npy, .npz, .csv or .parquet")
    parser.add_argument(
        "--output", type=arguments.path, help="answers: .csv, .parquet or .npy (logits); default: standard output"
    )
    parser.add_argument(
        "--header",
        choices=["auto", "yes", "no"],
        default="auto",
        help="whether the first line of a .csv file names the columns (default: by its cells)",
    )
    parser.add_argument("--resume", choices=["auto", "never"], default="auto", help="never: start over")
    parser.add_argument("--threads", type=arguments.whole(1, 1024), help="most threads to use (default: all)")
    try:
        args = parser.parse_args(argv)
        with catch_signals():
            if args.output is None:
                _print_answers(args)
            else:
                _write_answers(args)
        return 0
    except Interrupted as stopped:
        hint = "" if args.output is None else "; repeat the command to continue"
        print(f"interrupted{hint}", file=sys.stderr)
        return stopped.exit_code
    except (GmoeError, ValueError, OSError) as error:
        return report_error(error)


def _write_answers(args: argparse.Namespace) -> None:
    progress, start, shown = Progress(sys.stderr), time.perf_counter(), False

    def on_rows(done: int, resumed_at: int, total: int | None) -> None:
        nonlocal shown
        if not shown:  # the first call tells how many rows there are
            phase.enter_context(progress.phase("predict", "rows", total, resumed_at))
            shown = True
        rate = (done - resumed_at) / max(time.perf_counter() - start, 1e-9)
        progress.advance(done, f"{rate:,.0f} rows/s")

    options = {"resume": args.resume == "auto", "threads": args.threads, "header": args.header}
    with ExitStack() as phase:
        done = score(args.student, args.input, args.output, **options, on_rows=on_rows)
    _note(done.notes)
    resumed = f", {done.resumed_at:,} of them in an earlier run" if done.resumed_at else ""
    tell(f"answers    {args.output} ({done.rows:,} rows{resumed}, {time.perf_counter() - start:.1f} s)")
    if done.bad_rows_path is not None:
        tell(f"warning    {done.bad_rows:,} rows have no answer: {done.bad_rows_path}", sys.stderr)


def _print_answers(args: argparse.Namespace) -> None:
    student = load_student(args.student, args.threads)
    question = open_rows(student, args.input, args.header)
    _note(question.notes)
    classes, rows, problems = student.classes, 0, 0
    sys.stdout.write(csv_header(classes))
    for some in answer_question(question):
        sys.stdout.write(csv_lines(some.begin, to_records(CHOSEN, some.logits), classes))
        for row, text in sorted(some.problems.items()):
            print(f"warning    row {row} has no answer: {text}", file=sys.stderr)
        problems, rows = problems + len(some.problems), rows + len(some.logits)
    if problems:
        print(f"warning    {problems:,} rows have no answer", file=sys.stderr)
    if problems == rows > 0:
        raise DataError(f"--input {args.input}: none of its {rows:,} rows has an answer")


def _note(notes: Sequence[str]) -> None:
    for note in notes:
        tell(f"note       {note}", sys.stderr)
