"""Write the latency report: Markdown, JSON and a plot."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import extras
from ..errors import MissingExtraError
from ..timing import BURST_S, Samples, duration
from .contestants import EXPLAINED, PACKED, TEACHER

PERCENTILES = (50.0, 95.0, 99.0, 99.9)
HOW = (
    f"One process; the contestants answer the same requests in turns of {1e3 * BURST_S:g} ms, each request timed "
    "alone. The first request of a turn is not counted, since it finds the caches as another contestant left them. "
    "Requests are random and differ from one to the next. A request to the student holds the features of its rows and "
    "their rows of the position table; the teacher gets node ids and fetches features and edges itself. A percentile "
    "with fewer than one request beyond it is left out."
)


@dataclass
class Findings:
    """Everything that was measured.

    Attributes:
        facts: the student, machine and software, name -> text.
        latency: batch -> contestant -> seconds of one request, on one thread.
        throughput: threads -> contestant -> seconds of one request of ``throughput_batch`` rows.
        throughput_batch: rows.
        share: batch -> part of a core that this process had; far below 1, the machine was busy.
        fetched: batch -> nodes that the teacher fetches for a request (median); None where it reads the whole graph.
        absent: contestant -> why it was not measured.
    """

    facts: dict[str, str]
    latency: dict[int, dict[str, Samples]] = field(default_factory=dict)
    throughput: dict[int, dict[str, Samples]] = field(default_factory=dict)
    throughput_batch: int = 1
    share: dict[int, float] = field(default_factory=dict)
    fetched: dict[int, int | None] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


def write(findings: Findings, folder: Path) -> list[Path]:
    """Write latency.json, latency.md and, where matplotlib is installed, latency.png; return the paths written."""
    folder.mkdir(parents=True, exist_ok=True)
    page, record, picture = (folder / f"latency.{suffix}" for suffix in ("md", "json", "png"))
    record.write_text(json.dumps(_record(findings), indent=1) + "\n")
    try:
        draw(findings, picture)
    except MissingExtraError as error:
        page.write_text("\n".join([*markdown(findings), f"No picture: {error}."]) + "\n")
        return [page, record]
    page.write_text("\n".join([*markdown(findings), f"![latency]({picture.name})"]) + "\n")
    return [page, record, picture]


def markdown(findings: Findings) -> Iterator[str]:
    """Generate the page line by line."""
    yield from ("# Latency of a packed student", "")
    yield from ("Made by `python -m gmoe_ext.bench_student`; do not edit.", "")
    yield from (f"- {name}: {text}" for name, text in findings.facts.items())
    yield ""
    for batch, times in findings.latency.items():
        yield from _latency_table(batch, times, findings)
    yield from _throughput_table(findings)
    yield from ("## Contestants", "")
    present = {name for times in findings.latency.values() for name in times}
    yield from (f"- {name}: {text}." for name, text in EXPLAINED.items() if name in present)
    if TEACHER in present:
        yield f"- {TEACHER}: {findings.facts['teacher']}."
    yield from (f"- {name}: **not measured**: {why}" for name, why in findings.absent.items())
    yield from ("", "## How it was measured", "", HOW, "")


def _latency_table(batch: int, times: dict[str, Samples], findings: Findings) -> Iterator[str]:
    yield from (f"## {batch:,} row{'' if batch == 1 else 's'} a request, 1 thread", "")
    if batch in findings.fetched:
        fetched = findings.fetched[batch]
        if fetched is None:
            yield "The teacher needs most of the graph for a request and reads all of it."
        else:
            yield f"The teacher fetches {fetched:,} nodes for a request (median)."
        yield ""
    heads = [f"p{p:g}" for p in PERCENTILES]
    yield f"| | {' | '.join(heads)} | requests | p50 / packed |"
    yield "|---" * (len(heads) + 3) + "|"
    ours = times[PACKED].median
    for name, latency in times.items():
        tail = ["-" if (t := latency.tail(p)) is None else duration(t) for p in PERCENTILES[1:]]
        cells = [duration(latency.median), *tail]
        ratio = f"{latency.median / ours:.3g}x"
        yield f"| {name} | {' | '.join(cells)} | {len(latency.seconds):,} | {ratio} |"
    yield from ("", f"The process had {findings.share[batch]:.0%} of a core.", "")


def _throughput_table(findings: Findings) -> Iterator[str]:
    if not findings.throughput:
        return
    threads = list(findings.throughput)
    yield from (f"## Rows per second, {findings.throughput_batch:,} rows a request", "")
    yield "| | " + " | ".join(f"{n} thread{'' if n == 1 else 's'}" for n in threads) + " |"
    yield "|---" * (len(threads) + 1) + "|"
    for name in findings.throughput[threads[0]]:
        rates = [f"{findings.throughput_batch / findings.throughput[n][name].median:,.0f}" for n in threads]
        yield f"| {name} | {' | '.join(rates)} |"
    yield ""


def _record(findings: Findings) -> dict[str, Any]:
    def numbers(rounds: dict[int, dict[str, Samples]]) -> dict[int, dict[str, Any]]:
        return {setting: {name: one_record(one) for name, one in times.items()} for setting, times in rounds.items()}

    def one_record(latency: Samples) -> dict[str, Any]:
        named = {f"p{p:g}_s": latency.tail(p) for p in PERCENTILES}
        return {**named, "median_s": latency.median, "requests": len(latency.seconds)}

    return {
        "facts": findings.facts,
        "latency": numbers(findings.latency),
        "throughput_batch": findings.throughput_batch,
        "throughput": numbers(findings.throughput),
        "share_of_a_core": findings.share,
        "teacher_fetches_nodes": findings.fetched,
        "absent": findings.absent,
    }


def draw(findings: Findings, path: Path) -> None:
    """Plot p50 to p99.9 by batch (left) and rows per second by threads (right).

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = extras.load("matplotlib.figure").Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(dict.fromkeys(name for times in findings.latency.values() for name in times))
    for place, name in enumerate(names):
        shift = 0.11 * (place - (len(names) - 1) / 2)
        for i, times in enumerate(findings.latency.values()):
            if name in times:
                known = [v for v in map(times[name].tail, PERCENTILES) if v is not None]
                left.vlines(i + shift, times[name].median, max(known, default=times[name].median), color=f"C{place}")
                left.plot(i + shift, times[name].median, "o", color=f"C{place}", label=name if i == 0 else None)
        rates = {n: findings.throughput_batch / t[name].median for n, t in findings.throughput.items() if name in t}
        right.plot(list(rates), list(rates.values()), "o-", color=f"C{place}", label=name)
    left.set(yscale="log", ylabel="seconds a request", xlabel="rows a request, 1 thread")
    left.set_title("dot p50, line to the last known of p95, p99, p99.9", fontsize=10)
    left.set_xticks(range(len(findings.latency)), [f"{batch:,}" for batch in findings.latency])
    right.set(yscale="log", xlabel="threads", ylabel="rows per second")
    right.set_title(f"{findings.throughput_batch:,} rows a request", fontsize=10)
    right.set_xticks(list(findings.throughput))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(names), fontsize=8)
    figure.savefig(path, dpi=130)
