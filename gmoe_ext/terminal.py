"""What a command shows while it works, and how Ctrl-C and SIGTERM stop it.

On a terminal a phase of work is a bar, elsewhere one plain line per tenth of the way.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from types import FrameType
from typing import TextIO

from .errors import ConfigError, DataError, GmoeError, MissingExtraError

NAME_WIDTH = 10
_LINE_EVERY_S = 10.0  # where the length of the way is not known


class Progress:
    """Print the lines and bars of a command.

    Args:
        out: where they go; None: standard output at the time of writing.
        quiet: print nothing.
    """

    def __init__(self, out: TextIO | None = None, quiet: bool = False) -> None:
        self._out = out
        self._quiet = quiet
        self._phase: _Lines | _Bar | None = None

    @property
    def out(self) -> TextIO:
        """The stream that lines and bars go to."""
        return self._out or sys.stdout

    def line(self, name: str, text: str) -> None:
        """Print one line: NAME, padded, then the text."""
        self.write(f"{name:<{NAME_WIDTH}} {text}".rstrip())

    def write(self, text: str) -> None:
        """Print one line as it is."""
        if not self._quiet:
            tell(text, self.out)

    @contextmanager
    def phase(self, name: str, unit: str, total: int | None, done: int = 0) -> Iterator[None]:
        """Show the progress of a block of work.

        Args:
            name: first word of the line.
            unit: what is counted, such as "epoch".
            total: how many there are; None: not known.
            done: how many were done by an earlier run.
        """
        # An installation that only serves has no rich.
        bars = self.out.isatty() and not self._quiet and find_spec("rich") is not None
        self._phase = _Bar(self.out, name, unit, total, done) if bars else _Lines(self, name, unit, total, done)
        try:
            yield
            self._phase.finish()
        finally:
            self._phase.close()
            self._phase = None

    def advance(self, done: int, text: str, details: str = "") -> None:
        """Show that so many are done, and a text about them; further details come last."""
        if self._phase is not None:
            self._phase.advance(done, text, details)


class _Bar:
    """A bar with a count, a text, the time left and details."""

    def __init__(self, out: TextIO, name: str, unit: str, total: int | None, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bars = RichProgress(
            TextColumn(f"{{task.description:<{NAME_WIDTH}}} {unit}"),
            MofNCompleteColumn(),
            BarColumn(20),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[details]}"),
            console=Console(file=out),
            refresh_per_second=5,
        )
        self._bars.start()
        self._task = self._bars.add_task(name, total=total, completed=done, text="", details="")
        self._done, self._total = done, total

    def advance(self, done: int, text: str, details: str) -> None:
        self._done = done
        self._bars.update(self._task, completed=done, text=text, details=details)

    def finish(self) -> None:
        """Fill the bar of a phase that ended early of its own accord (patience), or whose length was not known."""
        if self._done != self._total:
            self._bars.update(self._task, total=self._done)

    def close(self) -> None:
        self._bars.stop()


class _Lines:
    """One line per tenth of the way; every ten seconds where the way's length is not known."""

    def __init__(self, progress: Progress, name: str, unit: str, total: int | None, done: int) -> None:
        self._progress, self._name, self._unit, self._total = progress, name, unit, total
        self._first, self._tenth = done, 0 if not total else done * 10 // total
        self._start = self._last = time.monotonic()
        self._unprinted = ""

    def advance(self, done: int, text: str, details: str) -> None:
        now, total = time.monotonic(), self._total
        of = "" if total is None else f"/{total:,}"
        self._unprinted = "  ".join(part for part in (f"{self._unit} {done:,}{of}", text, details) if part)
        if total is None:
            due, left = now - self._last >= _LINE_EVERY_S, ""
        else:
            tenth = done * 10 // max(1, total)
            due, self._tenth = tenth > self._tenth, tenth
            seconds = (now - self._start) / max(1, done - self._first) * (total - done)
            left = "" if done == total else f"  {seconds:.0f} s left"
        if due:
            self._progress.line(self._name, self._unprinted + left)
            self._last, self._unprinted = now, ""

    def finish(self) -> None:
        return

    def close(self) -> None:
        """Print how far the work got, if the last line did not."""
        if self._unprinted:
            self._progress.line(self._name, self._unprinted)


def tell(text: str, out: TextIO | None = None) -> None:
    """Print a line; what the stream cannot encode, such as a file's name that is not UTF-8, is shown escaped."""
    out = out or sys.stdout
    encoding = out.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=out, flush=True)


def report_error(error: Exception) -> int:
    """Print an error as one line of a command, and return the exit code: 2 settings, 3 data or a file, else 1."""
    text = error if isinstance(error, GmoeError) else GmoeError(str(error))  # escaped, and cut where it has no end
    print(f"error: {text}", file=sys.stderr)
    if isinstance(error, ConfigError | MissingExtraError):
        return 2
    return 3 if isinstance(error, DataError | OSError) else 1


class Interrupted(BaseException):
    """The command was asked to stop; finished work is on disk. `exit_code` is 128 + the signal's number.

    As KeyboardInterrupt it is no Exception: a library that turns every Exception into an error of its own lets it pass.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


@dataclass
class Stop:
    """A request to stop.

    Attributes:
        requested: number of the signal that came, or None.
        awaited: work is running that checks `requested` after every step, so a signal does not interrupt it.
    """

    requested: int | None = None
    awaited: bool = False

    def on_signal(self, signum: int, frame: FrameType | None) -> None:
        """Note the signal; raise `Interrupted` where nobody checks for it, and at the second one."""
        again = self.requested is not None
        self.requested = signum
        if again or not self.awaited:
            raise Interrupted(signum)


@contextmanager
def catch_signals() -> Iterator[Stop]:
    """Turn SIGINT and SIGTERM into a `Stop` inside the block; in another thread than the main one nothing comes."""
    stop = Stop()
    caught = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, stop.on_signal) for number in caught}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
