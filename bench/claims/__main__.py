"""python -m bench.claims: check every claim about speed on this machine and write bench/results/claims-t1.json.

With --device cuda it checks the claims of a GPU and writes claims-cuda.json.
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
    """Run the claims; return 0 (all reported), 1 (a result was refused) or 2 (they cannot run as asked)."""
    options = _parse(arguments)
    if options.clock == "cpu" and options.threads != 1:
        print("bench.claims: --clock cpu adds up the time of all threads; use it with --threads 1", file=sys.stderr)
        return 2
    # Before torch loads: rivals get arrays on huge pages, which our operators ask for themselves.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    import torch

    from ..timing import CLOCKS, EventTimer
    from . import catalogue, machine
    from .run import Outcome, as_record, experiment_lines, run, select, summary, target
    from .settings import Settings

    torch.set_num_threads(options.threads)
    settings = Settings(options.threads, options.quick, tuple(options.without), options.device)
    on_cpu = options.device == "cpu"
    experiments = catalogue.experiments if on_cpu else catalogue.gpu_experiments
    chosen = select(experiments(settings), options.only)
    if not chosen:
        print(f"bench.claims: no experiment or claim contains {options.only}", file=sys.stderr)
        return 2
    if options.list:
        for experiment in chosen:
            print(experiment.name)
            for claim in experiment.claims:
                print(f"    {claim.name}  {target(claim)}   ({claim.source})")
        return 0
    unavailable = None if on_cpu else EventTimer.unavailable()
    if unavailable is not None:
        print(f"bench.claims: --device {options.device}: {unavailable}", file=sys.stderr)
        return 2
    clock = options.clock if on_cpu else "events"
    facts = machine.describe(options.threads, clock, options.device)
    print(machine.line(facts), flush=True)
    judged = not options.quick
    path = options.json
    if path is None and judged and not options.only and options.clock == "wall":
        run_name = f"t{options.threads}" if on_cpu else "cuda"
        path = ROOT / "bench" / "results" / f"claims-{run_name}.json"
    watch = machine.Neighbours()
    budget_s = options.seconds if options.seconds is not None else (0.02 if options.quick else 3.0)
    outcomes: list[Outcome] = []
    for outcome in run(chosen, budget_s, CLOCKS[clock] if on_cpu else EventTimer()):
        outcomes.append(outcome)
        print(*experiment_lines(outcome, judged), sep="\n", flush=True)
        if path is not None:  # after each, so that an interrupted run keeps what it measured
            record = {"quick": options.quick, "machine": facts, "cpu_of_others": watch.share()}
            record["experiments"] = [as_record(one) for one in outcomes]
            path.write_text(json.dumps(record, indent=1) + "\n")
    others = watch.share()
    print(summary(outcomes, judged) + ("" if others is None else f"; others had {others:.0%} of the CPU"))
    if path is not None:
        print(f"written: {path}")
    return int(any(outcome.refusal for outcome in outcomes))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench.claims", description="Check every claim about speed.")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="names that contain this; may be repeated"
    )
    parser.add_argument("--threads", type=int, default=1, help="of ours and of every rival (default: 1)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="default: bench/results/claims-tTHREADS.json, when all claims run"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="small sizes: everything runs, nothing is judged")
    parser.add_argument("--seconds", type=float, metavar="S", help="time for each variant (default: 3; quick: 0.02)")
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: time of this process, for comparisons on a busy machine",
    )
    parser.add_argument(
        "--without", action="append", default=[], metavar="RIVAL", help='leave out, such as "torch.compile"'
    )
    parser.add_argument("--list", action="store_true", help="print the claims and stop")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
