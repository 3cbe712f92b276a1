"""Write the latency report from what pytest-benchmark measured: python -m bench.latency BENCHMARK.json (`make bench`).

bench/results/latency.md and latency.png show p50 and p95 of every implementation, and how many times as long the
pure-PyTorch form takes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmoe_ext.timing import Samples, duration

from .claims import machine

RESULTS = Path(__file__).resolve().parent / "results"
OURS = ("native", "packed")
PURE = "reference"


@dataclass(frozen=True)
class Row:
    """One implementation of one job, with times in seconds."""

    group: str
    name: str
    p50: float
    p95: float
    rounds: int

    @property
    def ours(self) -> bool:
        return self.name in OURS


def rows_of(record: dict[str, Any]) -> list[Row]:
    """Read a pytest-benchmark file, group by group, ours first.

    Raises:
        ValueError: the file has no single rounds (written by --benchmark-save instead of --benchmark-json).
    """
    rows = []
    for one in record["benchmarks"]:
        seconds = one["stats"].get("data")
        if not seconds:
            raise ValueError(f"{one['fullname']}: the file has no single rounds; fix: pytest --benchmark-json=FILE")
        samples, name = Samples(seconds), one["extra_info"]["implementation"]
        rows.append(Row(one["group"], name, samples.median, samples.percentile(95), len(seconds)))
    order = {group: place for place, group in enumerate(dict.fromkeys(row.group for row in rows))}
    return sorted(rows, key=lambda row: (order[row.group], not row.ours, row.p50))


def pure(rows: Sequence[Row], group: str) -> Row | None:
    """Return the pure-PyTorch row of a group, if it has one."""
    return next((row for row in rows if row.group == group and row.name == PURE), None)


def table(rows: Sequence[Row]) -> Iterable[str]:
    """Generate the table as Markdown, line by line."""
    yield "| job | implementation | p50 | p95 | pure PyTorch takes | rounds |"
    yield "|---|---|---|---|---|---|"
    last = ""
    for row in rows:
        base = pure(rows, row.group)
        ratio = "" if base is None else f"{base.p50 / row.p50:.2f}x"
        group = row.group if row.group != last else ""
        last = row.group
        yield f"| {group} | {row.name} | {duration(row.p50)} | {duration(row.p95)} | {ratio} | {row.rounds} |"


def plot(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draw one line per job: a bar from p50 to p95 for each implementation."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = list(dict.fromkeys(row.group for row in rows))
    names = sorted({row.name for row in rows}, key=lambda name: (name not in OURS, name != PURE, name))
    figure, axes = plt.subplots(figsize=(10, 1.5 + 0.27 * len(groups)), layout="constrained")
    for place, name in enumerate(names):
        mine = [row for row in rows if row.name == name]
        y = [groups.index(row.group) + 0.12 * (place - (len(names) - 1) / 2) for row in mine]
        axes.hlines(y, [row.p50 for row in mine], [row.p95 for row in mine], color=f"C{place}", linewidth=2)
        axes.plot([row.p50 for row in mine], y, "o", markersize=4, color=f"C{place}", label=name)
    axes.set(xscale="log", xlabel="seconds, dot p50, line to p95", title=title)
    axes.set_yticks(range(len(groups)), groups, fontsize=7)
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def write(record: dict[str, Any], facts: dict[str, Any], out: Path) -> list[Path]:
    """Write latency.md and latency.png into ``out``."""
    rows = rows_of(record)
    page, picture = out / "latency.md", out / "latency.png"
    head = ["# Latency", "", "Made by `make bench`; do not edit. " + machine.line(facts) + ".", ""]
    page.write_text("\n".join([*head, *table(rows), "", "![p50 and p95](latency.png)"]) + "\n")
    plot(rows, f"{facts['cpu']}, {facts['instruction_set']}, {machine.threads(facts)}", picture)
    return [page, picture]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report of a file."""
    parser = argparse.ArgumentParser("python -m bench.latency", description="Write the latency report of `make bench`.")
    parser.add_argument("record", type=Path, help="written by pytest --benchmark-json")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    options = parser.parse_args(arguments)
    import torch

    facts = machine.describe(torch.get_num_threads())
    for path in write(json.loads(options.record.read_text()), facts, options.out):
        print(f"written: {path}")


if __name__ == "__main__":
    main()
