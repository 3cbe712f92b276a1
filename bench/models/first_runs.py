"""Runs the first recipes on real data over seeds and writes bench/results/first_runs.{jsonl,md}.

    GMOE_EXT_DATA=DATA python -m bench.models.first_runs [--jobs 2] [--only molesol] [--table-only]

The records in first_runs.jsonl stay, wherever they were made. A run that has one there or in its run folder, made under
the recipe's present settings, is not run again; a new run replaces the record of its recipe and seed. An
interrupted run resumes from its checkpoint.
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
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gmoe_ext.train.config import config_hash
from gmoe_ext.train.parse import parse

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "gmoe_ext" / "configs"
RESULTS = ROOT / "bench" / "results"

Record = dict[str, Any]
Key = tuple[str, int]  # recipe and seed of a run


@dataclass(frozen=True)
class Entry:
    """One row of the table: a recipe, how to run it, and the published figures of it and of its teacher."""

    recipe: str
    paper: str
    teacher: str = "-"
    seeds: tuple[int, ...] = (0, 1, 2)
    flags: tuple[str, ...] = ()
    note: str = ""

    @property
    def key(self) -> str:
        return self.recipe.replace("/", "-")


TEN = tuple(range(10))  # where a test set is small
TWO_EPOCHS = ("--train.epochs", "2")
ENTRIES = [
    Entry("rbm/cora_planetoid_rbm_tran", "84.86 +- 0.46", "82.08 +- 0.63"),
    Entry("rbm/cora_planetoid_glnn_tran", "79.20 +- 3.07", "82.08 +- 0.63"),
    Entry("rbm/cora_planetoid_rbm_ind", "77.44 +- 1.08", "82.13 +- 0.50", TEN),
    Entry("rbm/cora_planetoid_glnn_ind", "73.28 +- 1.95", "82.13 +- 0.50", TEN),
    Entry("rbm/amazon_photo_rbm_tran", "93.62 +- 1.25", "91.93 +- 0.96"),
    Entry("rbm/amazon_photo_glnn_tran", "92.44 +- 0.89", "91.93 +- 0.96"),
    Entry("rbm/amazon_photo_rbm_ind", "93.06 +- 0.74", "92.14 +- 1.08"),
    Entry("rbm/amazon_photo_glnn_ind", "90.45 +- 1.12", "92.14 +- 1.08"),
    Entry("gmoe/molesol_gcn", "1.114 +- 0.036"),
    Entry("gmoe/molesol_gmoe-gcn", "1.087 +- 0.043"),
    Entry("gmoe/molesol_gmoe-gcn_sparse", "1.087 +- 0.043"),
    Entry("gmoe/molbbbp_gcn", "68.87 +- 1.51"),
    Entry("gmoe/molbbbp_gmoe-gcn", "70.28 +- 1.36"),
    Entry("gmoe/molbbbp_gmoe-gcn_sparse", "70.28 +- 1.36"),
    Entry("gmoe/molhiv_gcn", "76.06 +- 0.97", "-", (0,), TWO_EPOCHS, "2 of 100 epochs: shows that it runs"),
    Entry("gmoe/molhiv_gmoe-gcn_sparse", "77.87 +- 1.03", "-", (0,), TWO_EPOCHS, "2 of 100 epochs: shows that it runs"),
]


def arguments(entry: Entry) -> list[str]:
    """The flags that, with the seed, decide the numbers of a run."""
    return ["--config", str(CONFIGS / f"{entry.recipe}.yaml"), *entry.flags]


def run(entry: Entry, seed: int, runs: Path) -> None:
    """Run one recipe with one seed in a process of its own, on one thread."""
    folder = runs / f"{entry.key}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    # A finished run in this place was made under other settings, else it would not be run again.
    resume = "never" if (folder / "result.json").exists() else "auto"
    command = [
        *(sys.executable, "-m", "gmoe_ext.train", *arguments(entry)),
        *("--seed", str(seed), "--run_dir", str(folder), "--resume", resume),
    ]
    start = time.perf_counter()
    with (folder / "log.txt").open("a") as log:
        status = subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
        ).returncode
    state = "done" if status == 0 else f"FAILED ({status}), see {folder / 'log.txt'}"
    print(f"{entry.key} seed {seed}: {state} after {time.perf_counter() - start:.0f} s", flush=True)


def settings() -> dict[Key, str]:
    """The hash of the settings of every run of ENTRIES."""
    configs = {entry: parse(arguments(entry)) for entry in ENTRIES}
    return {
        (e.recipe, seed): config_hash(replace(config, seed=seed)) for e, config in configs.items() for seed in e.seeds
    }


def key_of(record: Record) -> Key:
    return str(record["recipe"]), int(record["seed"])


def is_current(record: Record, hashes: dict[Key, str]) -> bool:
    """Whether a record was made under the settings its recipe has now; one that does not tell its settings counts."""
    return record.get("config_hash") in (None, hashes.get(key_of(record)))


def collect(runs: Path) -> list[Record]:
    """The results in the run folder, one record per run, with the recipe's name."""
    records = []
    for entry in ENTRIES:
        for seed in entry.seeds:
            file = runs / f"{entry.key}-{seed}" / "result.json"
            if file.exists():
                records.append({"recipe": entry.recipe, **json.loads(file.read_text())})
    return records


def merge(kept: Iterable[Record], found: Iterable[Record], hashes: dict[Key, str]) -> list[Record]:
    """The records there were and those of the run folder: one per recipe and seed, in the order of ENTRIES.

    A record of the run folder is taken where there was none, and replaces one if it was made under present settings.
    Records of recipes that ENTRIES does not name come last.
    """
    merged = {key_of(record): record for record in kept}
    for record in found:
        if key_of(record) not in merged or is_current(record, hashes):
            merged[key_of(record)] = record
    order = {entry.recipe: i for i, entry in enumerate(ENTRIES)}
    return sorted(merged.values(), key=lambda record: (order.get(record["recipe"], len(order)), *key_of(record)))


def update(runs: Path, results: Path, hashes: dict[Key, str]) -> list[Record]:
    """Bring first_runs.{jsonl,md} up to date with the run folder; returns the records."""
    file = results / "first_runs.jsonl"
    kept = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    records = merge(kept, collect(runs), hashes)
    beside = file.with_suffix(".tmp")
    beside.write_text("".join(json.dumps(record) + "\n" for record in records))
    beside.replace(file)
    (results / "first_runs.md").write_text(table(records))
    return records


def spread(values: list[float], metric: str) -> str:
    scale, digits = (1.0, 3) if metric == "rmse" else (100.0, 2)
    mean = statistics.fmean(values) * scale
    deviation = statistics.pstdev(values) * scale
    return f"{mean:.{digits}f} +- {deviation:.{digits}f}" if len(values) > 1 else f"{mean:.{digits}f}"


def table(records: list[Record]) -> str:
    """The Markdown report: one row per recipe, mean and standard deviation over its seeds."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[str(record["recipe"])].append(record)
    lines = [
        "# First runs on real data",
        "",
        "Made by `python -m bench.models.first_runs`; one record per run in `first_runs.jsonl`. Mean and population",
        "standard deviation over seeds. `at best val` is the test score at the best validation epoch, the figure to",
        "compare; `best test` is the largest test score over epochs, which the released RbM code reports, also for",
        "teachers.",
        "Accuracy and ROC-AUC in percent, RMSE as it is. s/run is the median wall time of the student's or network's",
        "fit, one thread of a shared machine. molhiv uses a reconstructed scaffold split. Cora's inductive test set",
        "has 200 nodes: one seed has a standard error of 3 points.",
        "",
        "| recipe | metric | seeds | val | test at best val | best test | paper "
        "| teacher at best val | teacher, best test | paper's teacher | s/run |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in ENTRIES:
        group = groups.get(entry.recipe)
        if not group:
            continue
        metric = str(group[0]["metric"])
        column = {
            name: spread([float(r[name]) for r in group], metric)
            for name in ("val_best", "test_at_best_val", "test_best")
        }
        teachers = [r["teacher"] for r in group if r.get("teacher")]
        taught = {
            name: spread([float(t[name]) for t in teachers], metric) if teachers else "-"
            for name in ("test_at_best_val", "test_best")
        }
        seconds = statistics.median(float(r["wall_s"]) for r in group)
        note = f" ({entry.note})" if entry.note else ""
        lines.append(
            f"| [{entry.recipe}](../../gmoe_ext/configs/{entry.recipe}.yaml){note} | {metric} | {len(group)} "
            f"| {column['val_best']} | {column['test_at_best_val']} | {column['test_best']} | {entry.paper} "
            f"| {taught['test_at_best_val']} | {taught['test_best']} | {entry.teacher} | {seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--only", default="", help="run only recipes whose name contains this")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "first")
    parser.add_argument("--table-only", action="store_true", help="run nothing, write the table of what is there")
    args = parser.parse_args()
    hashes = settings()
    # Before anything runs: a run clears the folder of an earlier one under other settings.
    records = update(args.runs, RESULTS, hashes)
    if not args.table_only:
        done = {key_of(record) for record in records if is_current(record, hashes)}
        # Seeds outermost: after a third of the time every row has its first figure.
        last = max(len(entry.seeds) for entry in ENTRIES)
        work = [(e, e.seeds[i]) for i in range(last) for e in ENTRIES if i < len(e.seeds) and args.only in e.recipe]
        work = [(entry, seed) for entry, seed in work if (entry.recipe, seed) not in done]
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(lambda item: run(item[0], item[1], args.runs), work))
        records = update(args.runs, RESULTS, hashes)
    for record in records:
        if not is_current(record, hashes):
            print("made under other settings than the present ones:", *key_of(record))
    print(table(records))


if __name__ == "__main__":
    main()
