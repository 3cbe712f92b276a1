"""Ctrl-C and SIGTERM: inside a fit they wait for the end of the step and its checkpoint, elsewhere they act at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


class Interrupted(Exception):
    """The run was asked to stop; what is finished is in its checkpoints. `exit_code` is 128 + the signal's number."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


@dataclass
class Stop:
    """A request to stop, and whether somebody is there to see it.

    Attributes:
        requested: number of the signal that came, or None.
        awaited: a fit is running; it checks `requested` after every step.
    """

    requested: int | None = None
    awaited: bool = False

    def on_signal(self, signum: int, frame: FrameType | None) -> None:
        again = self.requested is not None
        self.requested = signum
        if again or not self.awaited:
            raise Interrupted(signum)


@contextmanager
def catch_signals() -> Iterator[Stop]:
    """Turn SIGINT and SIGTERM into a `Stop` for the time of the block. A second signal does not wait."""
    stop = Stop()
    before = {number: signal.signal(number, stop.on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
