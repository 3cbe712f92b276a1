"""Runs the first recipes on real data over seeds and writes bench/results/first_runs.{jsonl,md}.

    GMOE_EXT_DATA=DATA python -m bench.models.first_runs [--jobs 2] [--only molesol] [--table-only]

A run that has its result.json is not run again; an interrupted one resumes from its checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "gmoe_ext" / "configs"
RESULTS = ROOT / "bench" / "results"


@dataclass(frozen=True)
class Entry:
    """One row of the table: a recipe, how to run it, and the published figure (None: the paper has none)."""

    recipe: str
    paper: str | None
    seeds: tuple[int, ...] = (0, 1, 2)
    flags: tuple[str, ...] = ()
    note: str = ""

    @property
    def key(self) -> str:
        return self.recipe.replace("/", "-")


TWO_EPOCHS = ("--train.epochs", "2")
ENTRIES = [
    Entry("rbm/cora_planetoid_rbm_tran", "84.86 +- 0.46"),
    Entry("rbm/cora_planetoid_glnn_tran", "79.20 +- 3.07"),
    Entry("rbm/cora_planetoid_rbm_ind", "77.44 +- 1.08"),
    Entry("rbm/cora_planetoid_glnn_ind", "73.28 +- 1.95"),
    Entry("rbm/amazon_photo_rbm_tran", "93.62 +- 1.25"),
    Entry("rbm/amazon_photo_glnn_tran", "92.44 +- 0.89"),
    Entry("rbm/amazon_photo_rbm_ind", "93.06 +- 0.74"),
    Entry("rbm/amazon_photo_glnn_ind", "90.45 +- 1.12"),
    Entry("gmoe/molesol_gcn", "1.114 +- 0.036"),
    Entry("gmoe/molesol_gmoe-gcn", "1.087 +- 0.043"),
    Entry("gmoe/molesol_gmoe-gcn_sparse", "1.087 +- 0.043"),
    Entry("gmoe/molbbbp_gcn", "68.87 +- 1.51"),
    Entry("gmoe/molbbbp_gmoe-gcn", "70.28 +- 1.36"),
    Entry("gmoe/molbbbp_gmoe-gcn_sparse", "70.28 +- 1.36"),
    Entry("gmoe/molhiv_gcn", "76.06 +- 0.97", (0,), TWO_EPOCHS, "2 of 100 epochs: shows that it runs"),
    Entry("gmoe/molhiv_gmoe-gcn_sparse", "77.87 +- 1.03", (0,), TWO_EPOCHS, "2 of 100 epochs: shows that it runs"),
]


def run(entry: Entry, seed: int, runs: Path) -> None:
    """Run one recipe with one seed in a process of its own, on one thread, unless it is done."""
    folder = runs / f"{entry.key}-{seed}"
    if (folder / "result.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "-m", "gmoe_ext.train", "--config", str(CONFIGS / f"{entry.recipe}.yaml")),
        *("--seed", str(seed), "--run_dir", str(folder), "--resume", "auto", *entry.flags),
    ]
    start = time.perf_counter()
    with (folder / "log.txt").open("a") as log:
        status = subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
        ).returncode
    state = "done" if status == 0 else f"FAILED ({status}), see {folder / 'log.txt'}"
    print(f"{entry.key} seed {seed}: {state} after {time.perf_counter() - start:.0f} s", flush=True)


def collect(runs: Path) -> list[dict[str, object]]:
    """The results there are, one record per run, with the recipe's name."""
    records = []
    for entry in ENTRIES:
        for seed in entry.seeds:
            file = runs / f"{entry.key}-{seed}" / "result.json"
            if file.exists():
                records.append({"recipe": entry.recipe, **json.loads(file.read_text())})
    return records


def spread(values: list[float], metric: str) -> str:
    scale, digits = (1.0, 3) if metric == "rmse" else (100.0, 2)
    mean = statistics.fmean(values) * scale
    deviation = statistics.pstdev(values) * scale
    return f"{mean:.{digits}f} +- {deviation:.{digits}f}" if len(values) > 1 else f"{mean:.{digits}f}"


def table(records: list[dict[str, object]]) -> str:
    """The Markdown report: one row per recipe, mean and standard deviation over its seeds."""
    groups: dict[str, list[dict[str, object]]] = defaultdict(list)
    for record in records:
        groups[str(record["recipe"])].append(record)
    lines = [
        "# First runs on real data",
        "",
        "Made by `python -m bench.models.first_runs`; one record per run in `first_runs.jsonl`. Mean and population",
        "standard deviation over seeds. `at best val` is the test score at the best validation epoch, the figure to",
        "compare; `best test` is the largest test score over epochs, which the RbM program reports. Accuracy and",
        "ROC-AUC in percent, RMSE as it is. s/run is the median wall time, one thread of a shared machine.",
        "molhiv uses a reconstructed scaffold split.",
        "",
        "| recipe | metric | seeds | teacher | val | test at best val | best test | paper | s/run |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in ENTRIES:
        group = groups.get(entry.recipe)
        if not group:
            continue
        metric = str(group[0]["metric"])
        column = {
            name: spread([float(r[name]) for r in group], metric)  # type: ignore[arg-type]
            for name in ("val_best", "test_at_best_val", "test_best")
        }
        teachers = [r["teacher"]["test_at_best_val"] for r in group if r.get("teacher")]  # type: ignore[index]
        seconds = statistics.median(float(r["wall_s"]) for r in group)  # type: ignore[arg-type]
        note = f" ({entry.note})" if entry.note else ""
        lines.append(
            f"| [{entry.recipe}](../../gmoe_ext/configs/{entry.recipe}.yaml){note} | {metric} | {len(group)} "
            f"| {spread(teachers, metric) if teachers else '-'} | {column['val_best']} | {column['test_at_best_val']} "
            f"| {column['test_best']} | {entry.paper or '-'} | {seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--only", default="", help="run only recipes whose name contains this")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "first")
    parser.add_argument("--table-only", action="store_true", help="run nothing, write the table of what is there")
    args = parser.parse_args()
    if not args.table_only:
        # Seeds outermost: after a third of the time every row has its first figure.
        last = max(len(entry.seeds) for entry in ENTRIES)
        work = [(e, e.seeds[i]) for i in range(last) for e in ENTRIES if i < len(e.seeds) and args.only in e.recipe]
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(lambda item: run(item[0], item[1], args.runs), work))
    records = collect(args.runs)
    (RESULTS / "first_runs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (RESULTS / "first_runs.md").write_text(table(records))
    print(table(records))


if __name__ == "__main__":
    main()
