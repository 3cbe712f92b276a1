"""Interleaved timing: every round runs every variant, so that a slow minute of the machine hits all of them alike."""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter, process_time
from typing import Any, Protocol

SHORTEST_SAMPLE_S = 1e-3  # shorter ones repeat the call: the clock and the loop cost a tenth of a microsecond
MOST_SAMPLES = 201
SLOW_S = 0.5


@dataclass(frozen=True)
class Samples:
    """Seconds of one call, sampled; ``work`` units of work each."""

    seconds: tuple[float, ...]
    work: float = 1.0

    def percentile(self, p: float) -> float:
        """Linear between samples."""
        ordered = sorted(self.seconds)
        place = (len(ordered) - 1) * p / 100.0
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (place - low)

    def at(self, level: float) -> float:
        """Median (0), lower quartile (-1) or upper quartile (+1)."""
        return self.percentile(50.0 + 25.0 * level)

    def per_work(self, level: float) -> float:
        """Seconds per unit of work."""
        return self.at(level) / self.work

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "median_s": statistics.median(self.seconds),
            "q25_s": self.at(-1),
            "q75_s": self.at(1),
            "min_s": min(self.seconds),
            "samples": len(self.seconds),
            "work": self.work,
        }


class Timer(Protocol):
    """Takes the time of calls."""

    @property
    def shortest_s(self) -> float:
        """A sample that would be shorter repeats its call."""
        ...

    def seconds(self, call: Callable[[], Any], repeats: int) -> float:
        """Of so many calls together."""
        ...


@dataclass(frozen=True)
class HostTimer:
    """By a clock of this process, read before and after."""

    now: Callable[[], float]
    shortest_s: float = SHORTEST_SAMPLE_S

    def seconds(self, call: Callable[[], Any], repeats: int) -> float:
        start = self.now()
        for _ in range(repeats):
            call()
        return self.now() - start


WALL = HostTimer(lambda: perf_counter())
# CPU time leaves out what a busy machine took from us: right for one thread, and for comparing, not for promising.
CLOCKS: dict[str, Timer] = {"wall": WALL, "cpu": HostTimer(lambda: process_time())}


def interleave(
    calls: Mapping[str, tuple[Callable[[], Any], float]],
    budget_s: float,
    single_calls: int | None = None,
    timer: Timer = WALL,
) -> dict[str, Samples]:
    """Measure calls side by side.

    Args:
        calls: name -> (call, units of work).
        budget_s: time to spend on each; a call that takes longer is still sampled three times.
        single_calls: take that many samples of one call each instead.
        timer: whose seconds.
    """
    repeats, counts = {}, {}
    for name, (call, _) in calls.items():
        once = timer.seconds(call, 1)
        if once < SLOW_S:  # a slow call was warmed up by its check, and one more would tell nothing new
            trials = 1 if once > SHORTEST_SAMPLE_S else 10
            once = timer.seconds(call, trials) / trials
        repeats[name] = 1 if single_calls else max(1, math.ceil(timer.shortest_s / max(once, 1e-8)))
        fits = int(budget_s / (max(once, 1e-8) * repeats[name]))
        counts[name] = single_calls or max(3, min(MOST_SAMPLES, fits))
    taken: dict[str, list[float]] = {name: [] for name in calls}
    names, rounds = list(calls), max(counts.values())
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                # A variant with fewer samples than rounds takes them evenly spread over the rounds.
                if (turn + 1) * counts[name] // rounds > turn * counts[name] // rounds:
                    taken[name].append(timer.seconds(calls[name][0], repeats[name]) / repeats[name])
    finally:
        if collecting:
            gc.enable()
    return {name: Samples(tuple(seconds), calls[name][1]) for name, seconds in taken.items()}
