"""Time calls, alone or side by side, and print the result."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np

Ask = Callable[[int], object]  # answers request i

BURST_S = 0.05  # long enough to warm the caches again after another contestant, short against changes of the machine


@dataclass(frozen=True)
class Samples:
    """Durations of single calls, in seconds."""

    seconds: Sequence[float]

    def percentile(self, p: float) -> float:
        """Interpolate linearly between samples."""
        return float(np.percentile(self.seconds, p))

    def tail(self, p: float) -> float | None:
        """Return the percentile, or None where fewer than one sample lies beyond it."""
        if round(len(self.seconds) * (100 - p), 6) < 100:
            return None
        return self.percentile(p)

    @property
    def median(self) -> float:
        """The 50th percentile."""
        return self.percentile(50)


@contextmanager
def collector_off() -> Iterator[None]:
    """Collect garbage now and not again until the end, so that no call pays for another's garbage."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def rotate(names: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Yield (round, name) for every name in every round; each round starts with another name."""
    for turn in range(rounds):
        first = turn % len(names)
        for name in (*names[first:], *names[:first]):
            yield turn, name


def in_bursts(contestants: Mapping[str, Ask], seconds: float, burst_s: float = BURST_S) -> dict[str, Samples]:
    """Give the contestants bursts of requests in turn until each has had its time; every request is timed alone.

    A burst lasts ``burst_s`` or one request, whichever is longer. Its first request is answered but not counted: it
    finds the caches as another contestant left them, which does not happen to a service.

    Args:
        contestants: name -> call(i), i = 0, 1, ...
        seconds: time for each of them.
        burst_s: length of a burst.
    """
    taken: dict[str, list[int]] = {name: [] for name in contestants}
    with collector_off():
        for _, name in rotate(list(contestants), max(1, round(seconds / burst_s))):
            _burst(contestants[name], taken[name], burst_s)
    return {name: Samples([time / 1e9 for time in times]) for name, times in taken.items()}


def _burst(ask: Ask, times: list[int], burst_s: float) -> None:
    request = len(times)
    ask(request)
    end = perf_counter_ns() + int(burst_s * 1e9)
    while True:
        start = perf_counter_ns()
        ask(request)
        now = perf_counter_ns()
        times.append(now - start)
        request += 1
        if now >= end:
            return


def microseconds(call: Ask, seconds: float = 0.4) -> float:
    """Return the median time of call(i), i = 0, 1, ..., in microseconds; the first call is not counted."""
    return in_bursts({"": call}, seconds, burst_s=seconds)[""].median * 1e6


def duration(seconds: float) -> str:
    """Format a time with three digits and a unit."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
