"""The report as text: per experiment the times, per claim value, target and verdict."""

from __future__ import annotations

from collections.abc import Sequence

from gmoe_ext.train.speed import duration

from .claim import Claim
from .run import Outcome, Verdict
from .timing import Samples


def experiment_lines(outcome: Outcome, judged: bool) -> list[str]:
    """What one experiment has to say. ``judged`` False: the sizes are too small to call anything met or missed."""
    if outcome.refusal:
        return [f"{outcome.name}: REFUSED, no time is reported: {outcome.refusal}"]
    others = "" if outcome.others is None else f"   others had {outcome.others:.0%} of the CPU"
    lines = [f"{outcome.name}{others}"]
    width = max((len(name) for name in [*outcome.times, *outcome.missing]), default=0)
    lines += [f"    {name:{width}}  {times(samples)}" for name, samples in outcome.times.items()]
    lines += [f"    {name:{width}}  not measured: {why}" for name, why in outcome.missing.items()]
    lines += [f"  {claim_line(verdict, judged)}" for verdict in outcome.verdicts]
    return lines


def claim_line(verdict: Verdict, judged: bool) -> str:
    """'met     expert_linear/170000/eager  2.71 x [2.66, 2.80], target at least 2.4 x   (the promise in words)'."""
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
    """'at least 2.4 x'."""
    return f"{claim.direction} {claim.target:g} {claim.measure.unit}"


def times(samples: Samples) -> str:
    """Median, quartiles and number of samples."""
    median = samples.at(0)
    below, above = (samples.at(-1) / median - 1, samples.at(1) / median - 1)
    return f"{duration(median):>9}  quartiles {below:+.0%} {above:+.0%}  n={len(samples.seconds)}"


def summary(outcomes: Sequence[Outcome], judged: bool) -> str:
    """How many claims are met, missed, open; how many experiments were refused."""
    verdicts = [verdict for outcome in outcomes for verdict in outcome.verdicts]
    refused = sum(bool(outcome.refusal) for outcome in outcomes)
    open_ = sum(verdict.met is None for verdict in verdicts)
    end = f"{open_} not measured" + (f", {refused} experiments REFUSED" if refused else "")
    if not judged:
        return f"{len(verdicts) - open_} claims ran at quick sizes, which judge nothing; {end}"
    met = sum(verdict.met is True for verdict in verdicts)
    return f"{met} met, {len(verdicts) - met - open_} missed, {end}"
