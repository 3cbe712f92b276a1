"""Damage files and feed them to every reader: ``python -m tests.mutation --inputs 100000 --out build/mutation``.

The folder keeps the counts and the smallest input of each finding; the same command continues where it stopped, with
--seconds in pieces. Input number I of a target depends on --seed and I alone. Exit code 1: there are findings.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.mutation.targets import TARGETS
from tests.mutation.worker import (
    Bench,
    Finding,
    Input,
    Progress,
    corpus,
    forked,
    limited,
    outcome,
    write_corpus,
)

_AT_ONCE = 100  # inputs of a target of share 1 in one worker


class Ledger:
    """Counts by target, and findings, in a folder."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self._path = folder, folder / "counts.json"
        (folder / "findings").mkdir(parents=True, exist_ok=True)
        self.counts: dict[str, dict[str, int]] = {}
        if self._path.is_file():
            kept = json.loads(self._path.read_text())
            if kept["seed"] != seed:
                raise SystemExit(f"{folder} was begun with --seed {kept['seed']}, got {seed}")
            self.counts = kept["counts"]
        self.seed = seed
        for name in TARGETS:
            self.counts.setdefault(name, {"inputs": 0, "accepted": 0, "refused": 0, "findings": 0})

    @property
    def inputs(self) -> int:
        """Number of inputs so far."""
        return sum(count["inputs"] for count in self.counts.values())

    def add(self, name: str, accepted: int, refused: int, findings: int) -> None:
        """Count the outcomes of a target."""
        count = self.counts[name]
        count["accepted"] += accepted
        count["refused"] += refused
        count["findings"] += findings
        count["inputs"] += accepted + refused + findings

    def save(self) -> None:
        """Write the counts."""
        draft = self._path.with_suffix(".tmp")
        draft.write_text(json.dumps({"seed": self.seed, "counts": self.counts}, indent=1))
        draft.replace(self._path)

    def found(self, name: str, index: int, given: Input, finding: Finding) -> None:
        """Keep an input if it is the smallest of its kind."""
        key = f"{name}-{hashlib.sha256(finding.kind.encode()).hexdigest()[:10]}"
        note, content = (self.folder / "findings" / f"{key}{suffix}" for suffix in (".json", ".input"))
        before: dict[str, Any] = json.loads(note.read_text()) if note.is_file() else {"times": 0, "bytes": 1 << 62}
        record = before
        if len(given.content) < before["bytes"]:
            content.write_bytes(given.content)
            record = {"target": name, "file": given.file, "kind": finding.kind, "seed": self.seed, "index": index,
                      "bytes": len(given.content), "detail": finding.detail}  # fmt: skip
        note.write_text(json.dumps({**record, "times": before["times"] + 1}, indent=1))


def run_some(ledger: Ledger, bench: Bench, begin: int, count: int) -> None:
    """Feed ``count`` inputs from number ``begin`` on; a worker that dies is replaced behind the input it died of."""
    progress, end = Progress(), begin + count
    log, notes = bench.folder.parent / "log", bench.folder.parent / "notes"
    while begin < end:
        notes.write_text("")
        progress.set(begin - 1, 0, 0)  # reading the sound files comes first
        death = forked(lambda begin=begin: _work(ledger, bench, range(begin, end), progress, notes), progress, log)
        last, accepted, refused, _ = progress.get()
        findings = notes.read_text().count("\n")
        if death is not None and last < begin:
            raise SystemExit(f"{bench.name}: the sound files are not read:\n{death}")
        if death is not None:
            ledger.found(bench.name, last, bench.draw(ledger.seed, last), Finding(_cause(death), death))
            findings, last = findings + 1, last + 1
            bench.mend()
        ledger.add(bench.name, accepted, refused, findings)
        begin = last
    ledger.save()


def _work(ledger: Ledger, bench: Bench, indices: range, progress: Progress, notes: Path) -> None:
    torch.set_num_threads(1)
    bench.feed(None)
    progress.set(indices.start, 0, 0)
    accepted = refused = 0
    with limited(), notes.open("a") as file:
        for index in indices:
            progress.set(index, accepted, refused)
            given = bench.draw(ledger.seed, index)
            result = outcome(bench, given)
            if isinstance(result, Finding):
                ledger.found(bench.name, index, given, result)
                print(index, file=file, flush=True)
            accepted, refused = accepted + (result is True), refused + (result is False)
    progress.set(indices.stop, accepted, refused)


def _cause(death: str) -> str:
    """Name the signal and the last Python line that the log shows; workers that die there are of one kind."""
    lines = [line.strip() for line in death.splitlines() if line.strip()]
    fatal = next((line for line in lines if line.startswith("Fatal")), lines[0])
    ours = next((line for line in lines if "/gmoe_ext/" in line), "")
    return f"process died: {fatal} {ours.rsplit('/gmoe_ext/', 1)[-1]}"


def report(ledger: Ledger, seconds: float) -> None:
    """Print the counts and the findings."""
    for name, count in ledger.counts.items():
        if count["inputs"]:
            print(f"{name:16}" + "".join(f"{number:>10,} {what}" for what, number in count.items()))
    kinds = [json.loads(path.read_text()) for path in sorted((ledger.folder / "findings").glob("*.json"))]
    for kind in kinds:
        print(f"finding    {kind['target']}: {kind['kind']} ({kind['times']:,} times, {kind['bytes']:,} bytes)")
    print(f"{ledger.inputs:,} inputs in all, {len(kinds)} kinds of findings; seed {ledger.seed}, {seconds:.0f} s")


def keep(ledger: Ledger) -> None:
    """Add the smallest input of each finding to the corpus."""
    known = {(name, kind): given for name, kind, given in corpus()}
    for note in sorted((ledger.folder / "findings").glob("*.json")):
        found = json.loads(note.read_text())
        given, key = Input(found["file"], note.with_suffix(".input").read_bytes()), (found["target"], found["kind"])
        if key not in known or len(given.content) < len(known[key].content):
            known[key] = given
    write_corpus((name, kind, given) for (name, kind), given in sorted(known.items(), key=lambda entry: entry[0]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run until the number of inputs or seconds is reached; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description="Damage files and feed every reader.")
    parser.add_argument("--inputs", type=int, default=20_000, help="number of inputs in all, over all calls")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop earlier, to be continued")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/mutation"))
    parser.add_argument("--keep", action="store_true", help="add what was found to tests/corpus, which tests replay")
    parser.add_argument("--targets", default=",".join(TARGETS), help="a comma between names")
    options = parser.parse_args(argv)
    ledger, start = Ledger(options.out, options.seed), time.monotonic()
    names = options.targets.split(",")
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="mutation") as folder:
        benches = [Bench(name, Path(folder) / name) for name in names]
        while ledger.inputs < options.inputs and time.monotonic() - start < options.seconds:
            for bench in benches:
                left = options.inputs - ledger.inputs
                if left > 0:
                    count = min(left, _AT_ONCE * bench.target.share)
                    run_some(ledger, bench, ledger.counts[bench.name]["inputs"], count)
    report(ledger, time.monotonic() - start)
    if options.keep:
        keep(ledger)
    return int(any(count["findings"] for count in ledger.counts.values()))


if __name__ == "__main__":
    sys.exit(main())
