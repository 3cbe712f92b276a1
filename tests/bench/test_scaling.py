"""The plot of time per unit of work: every series is checked, measured and shown; the bound on memory is real."""

from __future__ import annotations

import json

import pytest

from bench.scaling import __main__ as command
from bench.scaling import measure, page
from gmoe_ext import ops


@pytest.mark.slow
def test_the_page_shows_every_series_and_the_memory(tmp_path):
    assert command.main(["--quick", "--seconds", "0", "--out", str(tmp_path)]) == 0
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
    assert command.main(["--quick", "--seconds", "0", "--out", str(tmp_path)]) == 1
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
