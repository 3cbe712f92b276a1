"""Claims about speed: variants of one job are measured together, and a number computed from their times must hold.

An experiment prepares inputs and variants once; all its claims are judged from the same measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ..timing import Samples

Direction = Literal["at least", "at most"]


class Mismatch(Exception):
    """A variant's result differs from the reference: nothing of its experiment may be reported."""


class Missing(Exception):
    """A variant cannot run here; the message says why (a package is not installed, a feature does not exist)."""


@dataclass(frozen=True)
class Variant:
    """One way to do the job.

    Attributes:
        call: does the job once.
        check: raises Mismatch unless the result is right; None where there is nothing to compare.
        work: units of work of one call; measures compare times per unit.
    """

    call: Callable[[], Any]
    check: Callable[[Any], None] | None = None
    work: float = 1.0


Variants = Mapping[str, Variant | Missing]


def optional(make: Callable[[], Variant]) -> Variant | Missing:
    """Return the variant, or the reason why it is missing."""
    try:
        return make()
    except Missing as reason:
        return reason


class Measure(Protocol):
    """The number a claim is about, computed from the times of some variants."""

    unit: str

    def variants(self) -> tuple[tuple[str, ...], ...]:
        """Return groups of names; at least one of each group must have run."""
        ...

    def value(self, times: Mapping[str, Samples], level: float) -> float:
        """Return the number at a level of its spread: 0 the median, -1 the lower quartile, +1 the upper."""
        ...


def _best(names: Sequence[str], times: Mapping[str, Samples], level: float) -> float:
    return min(times[name].per_work(level) for name in names if name in times)


@dataclass(frozen=True)
class Ratio:
    """Time of one variant divided by that of another, per unit of work; of several names the fastest counts."""

    time_of: tuple[str, ...]
    over: tuple[str, ...]
    unit: str = "x"

    def variants(self) -> tuple[tuple[str, ...], ...]:
        return self.time_of, self.over

    def value(self, times: Mapping[str, Samples], level: float) -> float:
        return _best(self.time_of, times, level) / _best(self.over, times, -level)


@dataclass(frozen=True)
class Microseconds:
    """Time of one call; with ``less``, minus the time of a call of that variant."""

    of: str
    less: str | None = None
    unit: str = "us"

    def variants(self) -> tuple[tuple[str, ...], ...]:
        return ((self.of,),) if self.less is None else ((self.of,), (self.less,))

    def value(self, times: Mapping[str, Samples], level: float) -> float:
        empty = 0.0 if self.less is None else times[self.less].at(-level)
        return (times[self.of].at(level) - empty) * 1e6


@dataclass(frozen=True)
class Tail:
    """A high percentile of single calls divided by their median."""

    of: str
    percentile: float = 99.0
    unit: str = "x"

    def variants(self) -> tuple[tuple[str, ...], ...]:
        return ((self.of,),)

    def value(self, times: Mapping[str, Samples], level: float) -> float:
        samples = times[self.of]
        return samples.percentile(self.percentile) / samples.percentile(50.0)


@dataclass(frozen=True)
class Flatness:
    """Largest time per unit of work of the named variants divided by the smallest."""

    of: tuple[str, ...]
    unit: str = "x"

    def variants(self) -> tuple[tuple[str, ...], ...]:
        return tuple((name,) for name in self.of)

    def value(self, times: Mapping[str, Samples], level: float) -> float:
        return max(times[n].per_work(level) for n in self.of) / min(times[n].per_work(-level) for n in self.of)


@dataclass(frozen=True)
class Claim:
    """A target for one number.

    Attributes:
        name: "operator/size/what".
        source: the claim in words.
        measure: the number it is about.
        target: what the number must reach.
        direction: whether larger or smaller numbers meet it.
    """

    name: str
    source: str
    measure: Measure
    target: float
    direction: Direction = "at least"

    def holds(self, value: float) -> bool:
        """Return whether the value meets the target."""
        return value >= self.target if self.direction == "at least" else value <= self.target


@dataclass(frozen=True)
class Experiment:
    """Variants of one job on one set of inputs, and the claims judged from them.

    Attributes:
        name: "operator/size".
        prepare: makes inputs and variants right before they are measured; they are freed right after. Where one call
            takes too long to be made for a check alone, it checks by itself and raises Mismatch.
        claims: judged from the measurement.
        gradients: whether variants differentiate; all others run in inference mode.
        calls: number of samples of single calls, for percentiles; None samples until the time is used up.
    """

    name: str
    prepare: Callable[[], Variants]
    claims: tuple[Claim, ...]
    gradients: bool = False
    calls: int | None = None


def speedup(name: str, source: str, over: str | tuple[str, ...], target: float, ours: str = "ours") -> Claim:
    """Claim that ours is at least ``target`` times as fast as the fastest of some rivals."""
    rivals = (over,) if isinstance(over, str) else over
    return Claim(name, source, Ratio(rivals, (ours,)), target)


def cost(name: str, source: str, of: str, target: float, ours: str = "ours") -> Claim:
    """Claim that ours takes at most ``target`` times as long as something that cannot be avoided."""
    return Claim(name, source, Ratio((ours,), (of,)), target, "at most")
