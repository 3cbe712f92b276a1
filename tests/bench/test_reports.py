"""The reports beside the claims: latency of every operator, time and memory over sizes, narrow weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import latency
from bench.narrow import main as narrow
from bench.scaling import __main__ as scaling
from bench.scaling import measure, page
from gmoe_ext import ops


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
    # pytest-benchmark measures nothing in a process that looks like a worker of pytest-xdist.
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    subprocess.run([*command, f"--benchmark-json={record}"], cwd=repository, env=env, check=True, capture_output=True)
    names = {row.name for row in latency.rows_of(json.loads(record.read_text()))}
    assert names == {"native", "reference"}
    latency.main([str(record), "--out", str(tmp_path)])
    assert "topk_softmax 1x8" in (tmp_path / "latency.md").read_text()
    assert (tmp_path / "latency.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_page_shows_every_series_and_the_memory(tmp_path):
    assert scaling.main(["--quick", "--seconds", "0", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "bench" / "results" / "scaling.json").read_text())
    text = (tmp_path / "docs" / "performance.md").read_text()
    assert [one["name"] for one in record["series"]] == [one.name for one in measure.all_series(quick=True)]
    for one in record["series"]:
        assert f"### {one['name']}" in text
        for point in one["points"]:
            assert point["ns_per_work"] > 0 and f"| {point['size']:,} |" in text
    assert [one["name"] for one in record["memory"]] in ([], list(measure.JOBS))
    assert (tmp_path / "docs" / "scaling.png").stat().st_size > 1000


def test_a_wrong_result_refuses(tmp_path, monkeypatch, capsys):
    right = ops.expert_linear
    monkeypatch.setattr(ops, "expert_linear", lambda *arguments: right(*arguments) * 1.1)
    assert scaling.main(["--quick", "--seconds", "0", "--out", str(tmp_path)]) == 1
    assert "expert_linear" in capsys.readouterr().err
    assert not (tmp_path / "docs" / "performance.md").exists()


def test_peak_memory_sees_a_copy_as_large_as_the_inputs():
    frugal = measure.peak_memory("aggregate", 4_000, threads=1)
    if frugal is None:
        pytest.skip("this system does not tell the peak of a process")
    assert frugal["within"] and frugal["peak"] >= frugal["inputs"] + frugal["outputs"] // 2


def test_the_page_shows_what_the_claims_left(tmp_path):
    machine = {"cpu": "some", "cpus": 1, "cpus_of_machine": 2, "threads": 2, "clock": "wall", "instruction_set": "avx2"}
    machine |= {"torch": "2", "allocator": "plain", "commit": "abc", "date": "today"}
    claim = {"name": "op/size/eager", "unit": "x", "direction": "at least", "target": 2.0, "met": True, "value": 3.0}
    claim |= {"low": 2.5, "high": 3.5, "not_measured": None}
    open_claim = claim | {"name": "op/size/rival", "value": None, "met": None, "not_measured": "package missing: rival"}
    experiments = [{"experiment": "op/size", "refused": None, "claims": [claim, open_claim]}]
    experiments.append({"experiment": "op/other", "refused": "'ours' is wrong", "claims": []})
    claims = {"machine": machine, "cpu_of_others": 0.01, "experiments": experiments}
    record = {"machine": machine, "series": [], "memory": []}
    text = "\n".join(page.lines(record, [claims]))
    assert "Claims, 2 threads" in text and "others had 1% of the CPU" in text
    assert "| op/size/eager | 3 x | 2.5 to 3.5 | at least 2 x | yes |" in text
    assert "| op/size/rival | not measured: package missing: rival |  | at least 2 x | open |" in text
    assert "op/other: nothing is reported" in text


def test_every_kind_of_weights_is_measured_on_the_run_s_own_nodes(
    distilled_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow([str(distilled_run)])
    _, _, *lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[:2] for row in rows] == [["run", weights] for weights in ("float32", "bfloat16", "int8")]
    assert float(rows[0][3]) < 1e-5 and rows[0][4] == "100.000%" and rows[0][6] == "+0.00"
    assert all(1e-5 < float(row[3]) < 0.1 for row in rows[1:])
