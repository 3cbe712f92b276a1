"""What a run shows while it works: bars on a terminal, elsewhere one plain line per tenth of the way."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

NAME_WIDTH = 10


class Progress:
    """Lines and bars of a run.

    Args:
        out: where they go; None is standard output at the time of writing.
        quiet: show nothing.
    """

    def __init__(self, out: TextIO | None = None, quiet: bool = False) -> None:
        self._out = out
        self._quiet = quiet
        self._shown: _Lines | _Bar | None = None

    @property
    def out(self) -> TextIO:
        """Where lines and bars go."""
        return self._out or sys.stdout

    def line(self, name: str, text: str) -> None:
        """A line: NAME, padded, then the text."""
        self.write(f"{name:<{NAME_WIDTH}} {text}".rstrip())

    def write(self, text: str) -> None:
        """A line as it is."""
        if not self._quiet:
            print(text, file=self.out, flush=True)

    @contextmanager
    def phase(self, name: str, epochs: int, done: int = 0) -> Iterator[None]:
        """The time of one fit of so many epochs, of which some were done before."""
        bars = self.out.isatty() and not self._quiet
        self._shown = _Bar(self.out, name, epochs, done) if bars else _Lines(self, name, epochs, done)
        try:
            yield
        finally:
            self._shown.close()
            self._shown = None

    def epoch(
        self, epoch: int, loss: float, val: float | None, load: list[float] | None, memory: int | None = None
    ) -> None:
        """An epoch is done; ``memory`` is what it took at most on a GPU, in bytes."""
        if self._shown is not None:
            self._shown.epoch(epoch, loss, val, load, memory)


class _Bar:
    """A bar with loss, validation score, time left and expert load."""

    def __init__(self, out: TextIO, name: str, epochs: int, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bars = RichProgress(
            TextColumn(f"{{task.description:<{NAME_WIDTH}}} epoch"),
            MofNCompleteColumn(),
            BarColumn(20),
            TextColumn("{task.fields[scores]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[load]}"),
            console=Console(file=out),
            refresh_per_second=5,
        )
        self._bars.start()
        self._task = self._bars.add_task(name, total=epochs, completed=done, scores="", load="")
        self._epoch, self._epochs = done, epochs
        self._val: float | None = None

    def epoch(
        self, epoch: int, loss: float, val: float | None, load: list[float] | None, memory: int | None = None
    ) -> None:
        self._epoch, self._val = epoch, self._val if val is None else val
        scores = f"loss {loss:.3f}" + ("" if self._val is None else f"  val {self._val:.3f}")
        self._bars.update(
            self._task, completed=epoch, scores=scores, load=_joined(load_text(load), memory_text(memory))
        )

    def close(self) -> None:
        if self._epoch < self._epochs:  # patience ended it: a full bar of the epochs it took
            self._bars.update(self._task, total=max(1, self._epoch))
        self._bars.stop()


class _Lines:
    """One line per tenth of the way."""

    def __init__(self, progress: Progress, name: str, epochs: int, done: int) -> None:
        self._progress, self._name, self._epochs, self._done = progress, name, epochs, done
        self._start = time.monotonic()
        self._val: float | None = None
        self._unsaid = ""

    def epoch(
        self, epoch: int, loss: float, val: float | None, load: list[float] | None, memory: int | None = None
    ) -> None:
        self._val = self._val if val is None else val
        self._unsaid = describe(epoch, self._epochs, loss, self._val, load, memory)
        if epoch * 10 // self._epochs == (epoch - 1) * 10 // self._epochs:
            return
        left = (time.monotonic() - self._start) / max(1, epoch - self._done) * (self._epochs - epoch)
        self._progress.line(self._name, self._unsaid + ("" if epoch == self._epochs else f"  {left:.0f} s left"))
        self._unsaid = ""

    def close(self) -> None:
        if self._unsaid:
            self._progress.line(self._name, self._unsaid)


def describe(
    epoch: int, epochs: int, loss: float, val: float | None, load: list[float] | None, memory: int | None = None
) -> str:
    """What is known after an epoch, in one line."""
    parts = [f"epoch {epoch}/{epochs}", f"loss {loss:.3f}"]
    if val is not None:
        parts.append(f"val {val:.3f}")
    return _joined(*parts, load_text(load), memory_text(memory))


def memory_text(memory: int | None) -> str:
    """The most that tensors took on a GPU so far."""
    return "" if memory is None else f"{memory / 1e9:.2f} GB"


def _joined(*parts: str) -> str:
    return "  ".join(part for part in parts if part)


def load_text(load: list[float] | None) -> str:
    """The experts' shares of the rows."""
    return "" if load is None else "load " + " ".join(f"{share:.2f}" for share in load)
