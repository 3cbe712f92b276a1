"""Time every request of several contestants, side by side."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np
from numpy.typing import NDArray

Ask = Callable[[int], object]  # answers request i

BURST_S = 0.05  # long enough to warm the caches again after another contestant, short for a machine's mood
PERCENTILES = (50.0, 95.0, 99.0, 99.9)


@dataclass(frozen=True)
class Latency:
    """Seconds of single requests."""

    seconds: NDArray[np.float64]

    def percentile(self, p: float) -> float | None:
        """None where too few requests were made to have one beyond it."""
        if round(len(self.seconds) * (100 - p), 6) < 100:
            return None
        return float(np.percentile(self.seconds, p))

    @property
    def median(self) -> float:
        """p50, of however few requests."""
        return float(np.median(self.seconds))


def interleaved(contestants: Mapping[str, Ask], seconds: float, burst_s: float = BURST_S) -> dict[str, Latency]:
    """Give the contestants bursts of requests in turn until each has had its time.

    A burst lasts ``burst_s`` or one request, whichever is longer. Its first request is answered and not counted: it
    finds the caches as another contestant left them, which no service does. Who begins changes with the round.

    Args:
        contestants: name -> call(i), i = 0, 1, ...
        seconds: time for each of them.
    """
    names, rounds = list(contestants), max(1, round(seconds / burst_s))
    taken: dict[str, list[int]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                _burst(contestants[name], taken[name], burst_s)
    finally:
        if collecting:
            gc.enable()
    return {name: Latency(np.array(times) / 1e9) for name, times in taken.items()}


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
