"""python -m bench.scaling: measure time per unit of work over sizes and peak memory, and write the page about both.

Writes bench/results/scaling.json, docs/scaling.png and docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write; return 1 if an operator's result differs from the reference."""
    options = _parse(arguments)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read when torch loads
    import torch

    from ..claims import machine
    from ..claims.claim import Mismatch
    from . import measure, page

    results, docs = options.out / "bench" / "results", options.out / "docs"
    results.mkdir(parents=True, exist_ok=True)
    docs.mkdir(parents=True, exist_ok=True)
    if not options.page:
        torch.set_num_threads(options.threads)
        facts, watch = machine.describe(options.threads), machine.Neighbours()
        print(machine.line(facts), flush=True)
        record = {"quick": options.quick, "machine": facts, "series": [], "memory": []}
        budget_s = options.seconds if options.seconds is not None else (0.02 if options.quick else 3.0)
        try:
            for one in measure.all_series(options.quick):
                record["series"].append(measure.time_series(one, budget_s))
                print(*_lines(record["series"][-1]), sep="\n", flush=True)
        except Mismatch as reason:
            print(f"bench.scaling: {one.name}: REFUSED, differs from gmoe_ext.reference: {reason}", file=sys.stderr)
            return 1
        for name in measure.JOBS:
            measured = measure.peak_memory(name, 2_000 if options.quick else 170_000, options.threads)
            if measured is not None:
                record["memory"].append(measured)
                print(
                    f"{name}: peak {measured['peak'] >> 20} MiB, bound {measured['bound'] / 2**20:.0f} MiB", flush=True
                )
        record["cpu_of_others"] = watch.share()
        (results / "scaling.json").write_text(json.dumps(record, indent=1) + "\n")
    for path in page.write(results, docs):
        print(f"written: {path}")
    return 0


def _lines(record: dict) -> list[str]:
    return [record["name"]] + [
        f"    {point['size']:>11,}  {point['ns_per_work']:.3g} ns per {record['unit']}  [{point['low']:.3g}, "
        f"{point['high']:.3g}]  {point['lies_in']}"
        for point in record["points"]
    ]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m bench.scaling", description="Measure time per unit of work and peak memory."
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="small sizes: everything runs; needs --out")
    parser.add_argument("--seconds", type=float, metavar="S", help="time for each size (default 3; quick: 0.02)")
    parser.add_argument("--page", action="store_true", help="only write the page again from the files in bench/results")
    parser.add_argument("--out", type=Path, default=ROOT, metavar="DIR", help="where bench/results and docs lie")
    options = parser.parse_args(arguments)
    if options.quick and options.out == ROOT:
        parser.error("--quick measures nothing worth keeping: name another folder by --out")
    return options


if __name__ == "__main__":
    sys.exit(main())
