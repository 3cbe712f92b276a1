"""Write docs/performance.md and its plot from the files in bench/results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..claims import machine


def write(results: Path, docs: Path) -> list[Path]:
    """Write the page from scaling.json and the claims-t*.json; return the paths written."""
    record = json.loads((results / "scaling.json").read_text())
    plot(record, docs / "scaling.png")
    page = docs / "performance.md"
    claims = [json.loads(path.read_text()) for path in sorted(results.glob("claims-t*.json"))]
    page.write_text("\n".join(lines(record, claims)) + "\n")
    return [page, docs / "scaling.png"]


def lines(record: dict[str, Any], claims: Sequence[dict[str, Any]]) -> Iterable[str]:
    """Yield the lines of the page."""
    yield "# Performance"
    yield ""
    yield "Made by `python -m bench.scaling`; do not edit. `python -m bench.claims` checks the claims;"
    yield "`bench/NOTES.md` records what was tried on the way."
    for one in claims:
        yield from _claims(one)
    yield ""
    yield "## Time per unit of work"
    yield ""
    yield machine.line(record["machine"]) + "."
    yield ""
    yield "![Time per unit of work over sizes](scaling.png)"
    yield ""
    yield "The working set is what is read or written repeatedly: the rows and the results. Where it outgrows a level"
    yield "of cache, the time per unit of work may rise."
    for series in record["series"]:
        yield from _series(series)
    yield ""
    yield "## Peak memory"
    yield ""
    yield "Peak of one call, including its inputs, against a bound of 1.1 x (inputs + outputs + 64 MiB)."
    yield ""
    if not record["memory"]:
        yield "Not measured: this system does not report the peak memory of a process."
        return
    yield from _table(
        ("call", "rows or nodes", "inputs", "outputs", "peak", "bound", "within"),
        (
            (
                one["name"], f"{one['size']:,}", *(_mib(one[key]) for key in ("inputs", "outputs", "peak", "bound")),
                _yes(one["within"]),
            )
            for one in record["memory"]
        ),
    )  # fmt: skip


def _claims(record: dict[str, Any]) -> Iterable[str]:
    yield ""
    yield f"## Claims, {machine.threads(record['machine'])}"
    yield ""
    others = record["cpu_of_others"]
    yield machine.line(record["machine"]) + ("." if others is None else f"; others had {others:.0%} of the CPU.")
    yield ""
    yield from _table(
        ("claim", "measured", "quartiles", "target", "met"),
        (_claim(claim) for one in record["experiments"] for claim in one["claims"]),
    )
    refused = [one for one in record["experiments"] if one["refused"]]
    for one in refused:
        yield ""
        yield f"{one['experiment']}: nothing is reported, {one['refused']}"


def _claim(claim: dict[str, Any]) -> tuple[str, ...]:
    unit = claim["unit"]
    target = f"{claim['direction']} {claim['target']:g} {unit}"
    if claim["value"] is None:
        return claim["name"], f"not measured: {claim['not_measured']}", "", target, "open"
    low, high = sorted((claim["low"], claim["high"]))
    return claim["name"], f"{claim['value']:.3g} {unit}", f"{low:.3g} to {high:.3g}", target, _yes(claim["met"])


def _series(series: dict[str, Any]) -> Iterable[str]:
    yield ""
    yield f"### {series['name']}"
    yield ""
    unit = "rows" if series["unit"] == "row" else "edges"
    yield from _table(
        (unit, f"ns per {series['unit']}", "quartiles", "working set", "fits in"),
        (
            (
                f"{p['size']:,}", _digits(p["ns_per_work"]), f"{_digits(p['low'])} to {_digits(p['high'])}",
                _mib(p["working_set"]), p["lies_in"],
            )
            for p in series["points"]
        ),
    )  # fmt: skip


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _mib(size: float) -> str:
    return f"{size / (1 << 20):,.1f} MiB"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def plot(record: dict[str, Any], path: Path) -> None:
    """Time per unit of work over sizes: rows to the left, edges to the right."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for axes, unit, size in zip(panels, ("row", "edge x feature"), ("rows", "edges"), strict=True):
        for series in (one for one in record["series"] if one["unit"] == unit):
            points = series["points"]
            x, middle = [p["size"] for p in points], [p["ns_per_work"] for p in points]
            around = [[p["ns_per_work"] - p["low"] for p in points], [p["high"] - p["ns_per_work"] for p in points]]
            axes.errorbar(x, middle, yerr=around, marker="o", markersize=4, capsize=2, label=series["name"])
            for before, after in pairwise(points):
                if before["lies_in"] != after["lies_in"]:
                    place = after["size"], after["ns_per_work"]
                    axes.annotate(after["lies_in"], place, (0, 6), textcoords="offset points", fontsize=7, ha="center")
        axes.set(xscale="log", yscale="log", xlabel=size, ylabel=f"ns per {unit}")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    facts = record["machine"]
    figure.suptitle(f"{facts['cpu']}, {facts['instruction_set']}, {machine.threads(facts)}", fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)
