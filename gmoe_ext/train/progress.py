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
        self._bar: _Plain | None = None

    def line(self, name: str, text: str) -> None:
        """A line: NAME, padded, then the text."""
        self.write(f"{name:<{NAME_WIDTH}} {text}".rstrip())

    def write(self, text: str) -> None:
        """A line as it is."""
        if not self._quiet:
            print(text, file=self._out or sys.stdout, flush=True)

    @contextmanager
    def phase(self, name: str, epochs: int, done: int = 0) -> Iterator[None]:
        """The time of one fit of so many epochs, of which some were done before."""
        self._bar = _Plain(self, name, epochs, done)
        try:
            yield
        finally:
            self._bar = None

    def epoch(self, epoch: int, loss: float, val: float | None, load: list[float] | None) -> None:
        """An epoch is done."""
        if self._bar is not None:
            self._bar.epoch(epoch, loss, val, load)


class _Plain:
    """One line per tenth of the way."""

    def __init__(self, progress: Progress, name: str, epochs: int, done: int) -> None:
        self._progress, self._name, self._epochs, self._done = progress, name, epochs, done
        self._start = time.monotonic()
        self._val: float | None = None

    def epoch(self, epoch: int, loss: float, val: float | None, load: list[float] | None) -> None:
        self._val = self._val if val is None else val
        if epoch * 10 // self._epochs == (epoch - 1) * 10 // self._epochs:
            return
        left = (time.monotonic() - self._start) / max(1, epoch - self._done) * (self._epochs - epoch)
        self._progress.line(self._name, describe(epoch, self._epochs, loss, self._val, load) + f"  {left:.0f} s left")


def describe(epoch: int, epochs: int, loss: float, val: float | None, load: list[float] | None) -> str:
    """What is known after an epoch, in one line."""
    parts = [f"epoch {epoch}/{epochs}", f"loss {loss:.3f}"]
    if val is not None:
        parts.append(f"val {val:.3f}")
    if load is not None:
        parts.append("load " + " ".join(f"{share:.2f}" for share in load))
    return "  ".join(parts)
