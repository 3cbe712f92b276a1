"""Run experiments: check results against the reference, time, judge, and report as text and JSON."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from gmoe_ext.timing import duration

from ..timing import WALL, Samples, Timer, interleave
from .claim import Claim, Experiment, Mismatch, Missing, Variant
from .machine import Neighbours


@dataclass(frozen=True)
class Verdict:
    """The result of one claim; value, low and high are None where it was not measured."""

    claim: Claim
    value: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the claim holds; None: not measured."""
        return None if self.value is None else self.claim.holds(self.value)


@dataclass(frozen=True)
class Outcome:
    """The result of one experiment. A refusal leaves no times and no verdicts."""

    name: str
    times: dict[str, Samples] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    verdicts: tuple[Verdict, ...] = ()
    others: float | None = None
    refusal: str = ""


def run(experiments: Iterable[Experiment], budget_s: float, timer: Timer = WALL) -> Iterator[Outcome]:
    """Run experiments one after another, freeing the memory of each before the next begins."""
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
        raise Mismatch(f"the result of '{name}' differs from gmoe_ext.reference: {reason}") from None


def judge(claim: Claim, times: dict[str, Samples], missing: dict[str, str]) -> Verdict:
    """Compute the claim's number; a rival that did not run leaves the claim open, never met."""
    for group in claim.measure.variants():
        if not any(name in times for name in group):
            reasons = dict.fromkeys(missing.get(name, f"'{name}' was left out") for name in group)
            return Verdict(claim, reason="; ".join(reasons))
    value, low, high = (claim.measure.value(times, level) for level in (0.0, -1.0, 1.0))
    return Verdict(claim, value, low, high)


def select(experiments: Sequence[Experiment], only: Sequence[str]) -> list[Experiment]:
    """Return the experiments whose name, or the name of one of their claims, contains one of the given texts."""
    if not only:
        return list(experiments)

    def wanted(experiment: Experiment) -> bool:
        names = [experiment.name, *(claim.name for claim in experiment.claims)]
        return any(text in name for text in only for name in names)

    return [experiment for experiment in experiments if wanted(experiment)]


def as_record(outcome: Outcome) -> dict[str, Any]:
    """Return what the results file keeps of an experiment."""
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


def experiment_lines(outcome: Outcome, judged: bool) -> list[str]:
    """Format the report of one experiment; ``judged`` False: at quick sizes nothing is called met or missed."""
    if outcome.refusal:
        return [f"{outcome.name}: REFUSED, no time is reported: {outcome.refusal}"]
    others = "" if outcome.others is None else f"   others had {outcome.others:.0%} of the CPU"
    lines = [f"{outcome.name}{others}"]
    width = max((len(name) for name in [*outcome.times, *outcome.missing]), default=0)
    lines += [f"    {name:{width}}  {_times(samples)}" for name, samples in outcome.times.items()]
    lines += [f"    {name:{width}}  not measured: {why}" for name, why in outcome.missing.items()]
    lines += [f"  {_claim_line(verdict, judged)}" for verdict in outcome.verdicts]
    return lines


def _claim_line(verdict: Verdict, judged: bool) -> str:
    """'met     expert_linear/170000/eager  2.71 x [2.66, 2.80], target at least 2.4 x   (the claim in words)'."""
    claim = verdict.claim
    if verdict.value is None or verdict.low is None or verdict.high is None:
        return f"open    {claim.name}  not measured: {verdict.reason}   ({claim.source})"
    word = ("met" if verdict.met else "MISSED") if judged else "quick"
    low, high = sorted((verdict.low, verdict.high))
    return (
        f"{word:7} {claim.name}  {verdict.value:.3g} {claim.measure.unit} [{low:.3g}, {high:.3g}], "
        f"target {target(claim)}   ({claim.source})"
    )


def target(claim: Claim) -> str:
    """Format a target: 'at least 2.4 x'."""
    return f"{claim.direction} {claim.target:g} {claim.measure.unit}"


def _times(samples: Samples) -> str:
    """Median, quartiles and number of samples."""
    median = samples.at(0)
    below, above = (samples.at(-1) / median - 1, samples.at(1) / median - 1)
    return f"{duration(median):>9}  quartiles {below:+.0%} {above:+.0%}  n={len(samples.seconds)}"


def summary(outcomes: Sequence[Outcome], judged: bool) -> str:
    """Count the claims that are met, missed and open, and the experiments that were refused."""
    verdicts = [verdict for outcome in outcomes for verdict in outcome.verdicts]
    refused = sum(bool(outcome.refusal) for outcome in outcomes)
    open_ = sum(verdict.met is None for verdict in verdicts)
    end = f"{open_} not measured" + (f", {refused} experiments REFUSED" if refused else "")
    if not judged:
        return f"{len(verdicts) - open_} claims ran at quick sizes, which judge nothing; {end}"
    met = sum(verdict.met is True for verdict in verdicts)
    return f"{met} met, {len(verdicts) - met - open_} missed, {end}"
