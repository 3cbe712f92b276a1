"""Runs experiments: check against the reference, time, judge."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .claim import Claim, Experiment, Mismatch, Missing, Variant
from .machine import Neighbours
from .timing import WALL, Samples, Timer, interleave


@dataclass(frozen=True)
class Verdict:
    """What became of one claim; value, low and high are None where it was not measured."""

    claim: Claim
    value: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""

    @property
    def met(self) -> bool | None:
        """None: not measured."""
        return None if self.value is None else self.claim.holds(self.value)


@dataclass(frozen=True)
class Outcome:
    """What became of one experiment. A refusal leaves no times and no verdicts."""

    name: str
    times: dict[str, Samples] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    verdicts: tuple[Verdict, ...] = ()
    others: float | None = None
    refusal: str = ""


def run(experiments: Iterable[Experiment], budget_s: float, timer: Timer = WALL) -> Iterator[Outcome]:
    """Run one after the other; what one leaves in memory is freed before the next begins."""
    for experiment in experiments:
        yield run_one(experiment, budget_s, timer)
        gc.collect()


def run_one(experiment: Experiment, budget_s: float, timer: Timer = WALL) -> Outcome:
    """Check and measure one experiment."""
    with torch.inference_mode(not experiment.gradients):
        try:
            variants = experiment.prepare()
            ready = {name: variant for name, variant in variants.items() if isinstance(variant, Variant)}
            missing = {name: str(why) for name, why in variants.items() if isinstance(why, Missing)}
            for name, variant in ready.items():
                _check(name, variant)
        except Mismatch as reason:
            return Outcome(experiment.name, refusal=str(reason))
        calls = {name: (variant.call, variant.work) for name, variant in ready.items()}
        del variants, ready  # the expected results are as large as the inputs
        gc.collect()
        neighbours = Neighbours()
        times = interleave(calls, budget_s, experiment.calls, timer) if calls else {}
    verdicts = tuple(judge(claim, times, missing) for claim in experiment.claims)
    return Outcome(experiment.name, times, missing, verdicts, neighbours.share())


def _check(name: str, variant: Variant) -> None:
    if variant.check is None:
        return
    try:
        variant.check(variant.call())
    except Mismatch as reason:
        raise Mismatch(f"'{name}' does not give what gmoe_ext.reference gives: {reason}") from None


def judge(claim: Claim, times: dict[str, Samples], missing: dict[str, str]) -> Verdict:
    """Make the claim's number of the times; a rival that did not run leaves the claim open, never met."""
    for group in claim.measure.variants():
        if not any(name in times for name in group):
            reasons = dict.fromkeys(missing.get(name, f"'{name}' was left out") for name in group)
            return Verdict(claim, reason="; ".join(reasons))
    value, low, high = (claim.measure.value(times, level) for level in (0.0, -1.0, 1.0))
    return Verdict(claim, value, low, high)


def select(experiments: Sequence[Experiment], only: Sequence[str]) -> list[Experiment]:
    """Those whose name, or the name of one of their claims, contains one of the given texts."""
    if not only:
        return list(experiments)

    def wanted(experiment: Experiment) -> bool:
        names = [experiment.name, *(claim.name for claim in experiment.claims)]
        return any(text in name for text in only for name in names)

    return [experiment for experiment in experiments if wanted(experiment)]


def as_record(outcome: Outcome) -> dict[str, Any]:
    """For JSON."""
    return {
        "experiment": outcome.name,
        "refused": outcome.refusal or None,
        "cpu_of_others": outcome.others,
        "variants": {name: samples.record() for name, samples in outcome.times.items()},
        "missing": outcome.missing,
        "claims": [
            {
                "name": verdict.claim.name,
                "source": verdict.claim.source,
                "target": verdict.claim.target,
                "direction": verdict.claim.direction,
                "unit": verdict.claim.measure.unit,
                "value": verdict.value,
                "low": verdict.low,
                "high": verdict.high,
                "met": verdict.met,
                "not_measured": verdict.reason or None,
            }
            for verdict in outcome.verdicts
        ],
    }
