"""Interleaved timing: every round runs every variant, so that a slow minute of the machine hits all of them alike."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter, process_time
from typing import Any, Protocol

import torch

from gmoe_ext import _native, timing

SHORTEST_SAMPLE_S = 1e-3  # shorter ones repeat the call: the clock and the loop cost a tenth of a microsecond
MOST_SAMPLES = 201
SLOW_S = 0.5


@dataclass(frozen=True)
class Samples(timing.Samples):
    """Durations of single calls, each of which does ``work`` units of work."""

    work: float = 1.0

    def at(self, level: float) -> float:
        """Return the median (0), the lower quartile (-1) or the upper quartile (+1)."""
        return self.percentile(50.0 + 25.0 * level)

    def per_work(self, level: float) -> float:
        """Return seconds per unit of work."""
        return self.at(level) / self.work

    def record(self) -> dict[str, Any]:
        """Return what the results file keeps."""
        return {
            "median_s": statistics.median(self.seconds),
            "q25_s": self.at(-1),
            "q75_s": self.at(1),
            "min_s": min(self.seconds),
            "samples": len(self.seconds),
            "work": self.work,
        }


class Timer(Protocol):
    """A way to time calls."""

    @property
    def shortest_s(self) -> float:
        """The shortest sample; a shorter call is repeated within one."""
        ...

    def seconds(self, call: Callable[[], Any], repeats: int) -> float:
        """Return what ``repeats`` calls take together."""
        ...


@dataclass(frozen=True)
class HostTimer:
    """Reads a clock of this process before and after the calls."""

    now: Callable[[], float]
    shortest_s: float = SHORTEST_SAMPLE_S

    def seconds(self, call: Callable[[], Any], repeats: int) -> float:
        start = self.now()
        for _ in range(repeats):
            call()
        return self.now() - start


class EventTimer:
    """Times the work of the device: between an event before a call and one after it, on torch's current stream.

    Before each call a buffer twice as large as the second-level cache is overwritten. That evicts the inputs and gives
    the host time to queue the call, so that launches are not measured.
    """

    shortest_s = 0.0  # an event is exact to half a microsecond: a call is never repeated within a sample

    def __init__(self) -> None:
        card = torch.cuda.get_device_properties(torch.cuda.current_device())
        self._evicting = torch.empty(2 * card.L2_cache_size, dtype=torch.uint8, device="cuda")

    def seconds(self, call: Callable[[], Any], repeats: int) -> float:
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
        for start, end in events:
            self._evicting.zero_()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in events) / 1e3

    @staticmethod
    def unavailable() -> str | None:
        """Return why the claims of a GPU cannot run here, or None."""
        if not torch.cuda.is_available():
            return "torch sees no GPU here"
        return _native.why_no_cuda()


WALL = HostTimer(lambda: perf_counter())
# CPU time leaves out what other processes took from this one: right for one thread and for comparing, not for claims.
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
        timer: takes the time.
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
    rounds = max(counts.values())
    with timing.collector_off():
        for turn, name in timing.rotate(list(calls), rounds):
            # A variant with fewer samples than rounds takes them evenly spread over the rounds.
            if (turn + 1) * counts[name] // rounds > turn * counts[name] // rounds:
                taken[name].append(timer.seconds(calls[name][0], repeats[name]) / repeats[name])
    return {name: Samples(seconds, calls[name][1]) for name, seconds in taken.items()}
