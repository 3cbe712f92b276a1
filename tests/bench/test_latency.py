"""The latency report: what pytest-benchmark measured, side by side, against the pure-PyTorch form."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bench import latency


def entry(group: str, implementation: str, seconds: list[float]) -> dict:
    named = {"name": implementation, "fullname": implementation, "extra_info": {"implementation": implementation}}
    return named | {"group": group, "stats": {"data": seconds}}


RECORD = {
    "benchmarks": [
        entry("b", "reference", [4.0, 4.0, 4.0]),
        entry("b", "native", [1.0, 2.0, 3.0]),
        entry("a", "loop", [1e-5]),
        entry("student, rbm", "packed", [1e-6]),
        entry("student, rbm", "reference", [1e-4]),
    ]
}


def test_rows_stand_group_by_group_with_ours_first():
    rows = latency.rows_of(RECORD)
    assert [(row.group, row.name) for row in rows] == [
        ("b", "native"), ("b", "reference"), ("a", "loop"), ("student, rbm", "packed"), ("student, rbm", "reference"),
    ]  # fmt: skip
    assert (rows[0].p50, rows[0].p95) == (2.0, pytest.approx(2.9))


def test_the_table_says_how_many_times_as_long_pure_pytorch_takes():
    text = "\n".join(latency.table(latency.rows_of(RECORD)))
    assert "| b | native | 2 s | 2.9 s | 2.00x | 3 |" in text
    assert "|  | reference | 4 s | 4 s | 1.00x | 3 |" in text
    assert "| a | loop | 10 us | 10 us |  | 1 |" in text
    assert "| packed | 1 us | 1 us | 100.00x | 1 |" in text


def test_a_file_without_single_rounds_is_refused():
    record = {"benchmarks": [entry("b", "native", [])]}
    with pytest.raises(ValueError, match="benchmark-json"):
        latency.rows_of(record)


def test_a_real_run_becomes_a_report(tmp_path, repository):
    pytest.importorskip("matplotlib")
    record = tmp_path / "latency.json"
    chosen = ["bench/bench_ops.py", "-k", "topk_softmax and 1x8", "--benchmark-only", "--benchmark-max-time=0.01"]
    options = ["-o", "python_files=bench_*.py", "-o", "addopts=", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *chosen, *options]
    subprocess.run([*command, f"--benchmark-json={record}"], cwd=repository, check=True, capture_output=True)
    names = {row.name for row in latency.rows_of(json.loads(record.read_text()))}
    assert names == {"native", "reference"}
    latency.main([str(record), "--out", str(tmp_path)])
    assert "topk_softmax 1x8" in (tmp_path / "latency.md").read_text()
    assert (tmp_path / "latency.png").stat().st_size > 1000
