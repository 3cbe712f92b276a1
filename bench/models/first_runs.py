"""Run the first recipes on real data over seeds and write bench/results/first_runs.{jsonl,md}.

    GMOE_EXT_DATA=DATA python -m bench.models.first_runs [--jobs 2] [--only molesol] [--table-only]

Records in first_runs.jsonl are kept, wherever they were made. A run is skipped if it has one there or in its run folder
that was made under the recipe's current settings; a new run replaces the record of its recipe and seed. An interrupted
run resumes from its checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import re
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

from gmoe_ext.atomic_write import atomic_write
from gmoe_ext.train import recipes
from gmoe_ext.train.config import config_hash
from gmoe_ext.train.parse import parse

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"

Record = dict[str, Any]
Key = tuple[str, int]  # recipe and seed of a run


@dataclass(frozen=True)
class Entry:
    """One row of the table: a recipe and how to run it."""

    recipe: str
    seeds: tuple[int, ...] = (0, 1, 2)
    flags: tuple[str, ...] = ()
    note: str = ""


TEN = tuple(range(10))  # where a test set is small
TWO_EPOCHS = ("--train.epochs", "2")
ENTRIES = [
    Entry("cora_planetoid_rbm_tran"),
    Entry("cora_planetoid_glnn_tran"),
    Entry("cora_planetoid_rbm_ind", TEN),
    Entry("cora_planetoid_glnn_ind", TEN),
    Entry("amazon_photo_rbm_tran"),
    Entry("amazon_photo_glnn_tran"),
    Entry("amazon_photo_rbm_ind"),
    Entry("amazon_photo_glnn_ind"),
    Entry("molesol_gcn"),
    Entry("molesol_gmoe-gcn"),
    Entry("molesol_gmoe-gcn_sparse"),
    Entry("molbbbp_gcn"),
    Entry("molbbbp_gmoe-gcn"),
    Entry("molbbbp_gmoe-gcn_sparse"),
    Entry("molhiv_gcn", (0,), TWO_EPOCHS, "2 of 100 epochs: shows that it runs"),
    Entry("molhiv_gmoe-gcn_sparse", (0,), TWO_EPOCHS, "2 of 100 epochs: shows that it runs"),
]


def arguments(entry: Entry) -> list[str]:
    """The flags that, with the seed, decide the numbers of a run."""
    return ["--config", entry.recipe, *entry.flags]


def run(entry: Entry, seed: int, runs: Path) -> None:
    """Run one recipe with one seed in a process of its own, on one thread."""
    folder = runs / f"{entry.recipe}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    # A finished run in this place was made under other settings, otherwise it would have been skipped.
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
    print(f"{entry.recipe} seed {seed}: {state} after {time.perf_counter() - start:.0f} s", flush=True)


def settings() -> dict[Key, str]:
    """The hash of the settings of every run of ENTRIES."""
    configs = {entry: parse(arguments(entry)) for entry in ENTRIES}
    return {
        (e.recipe, seed): config_hash(replace(config, seed=seed)) for e, config in configs.items() for seed in e.seeds
    }


def key_of(record: Record) -> Key:
    return str(record["recipe"]), int(record["seed"])


def is_current(record: Record, hashes: dict[Key, str]) -> bool:
    """Whether a record was made under its recipe's current settings, or does not say under which."""
    return record.get("config_hash") in (None, hashes.get(key_of(record)))


def collect(runs: Path) -> list[Record]:
    """The results in the run folder, one record per run, with the recipe's name."""
    records = []
    for entry in ENTRIES:
        for seed in entry.seeds:
            file = runs / f"{entry.recipe}-{seed}" / "result.json"
            if file.exists():
                records.append({"recipe": entry.recipe, **json.loads(file.read_text())})
    return records


def merge(kept: Iterable[Record], found: Iterable[Record], hashes: dict[Key, str]) -> list[Record]:
    """Merge earlier records with those of the run folder: one per recipe and seed, in the order of ENTRIES.

    A record of the run folder fills a gap, and replaces an earlier one if it was made under current settings. Records
    of recipes that ENTRIES does not name come last.
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
    with atomic_write(file) as draft:
        draft.write_text("".join(json.dumps(record) + "\n" for record in records))
    (results / "first_runs.md").write_text(table(records))
    return records


def paper(name: str) -> str:
    """The published figure of a recipe."""
    figure = recipes.find(name).published if name in recipes.names() else None
    return "-" if figure is None else figure.spread()


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
        teacher = re.sub("_(rbm|glnn)_", "_sage_", entry.recipe)
        lines.append(
            f"| {entry.recipe}{note} | {metric} | {len(group)} "
            f"| {column['val_best']} | {column['test_at_best_val']} | {column['test_best']} | {paper(entry.recipe)} "
            f"| {taught['test_at_best_val']} | {taught['test_best']} | {paper(teacher) if teachers else '-'} "
            f"| {seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--only", default="", help="run only recipes whose name contains this")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "first")
    parser.add_argument("--table-only", action="store_true", help="run nothing, write the table of existing records")
    args = parser.parse_args()
    hashes = settings()
    # Before anything runs, because a run clears the folder of an earlier one under other settings.
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
            print("made under other settings than the current ones:", *key_of(record))
    print(table(records))


if __name__ == "__main__":
    main()
