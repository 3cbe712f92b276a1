"""The latency report of a student: its contestants, the reasons for missing ones, and its numbers."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from gmoe_ext import models
from gmoe_ext.bench_student.__main__ import default_threads, main
from gmoe_ext.bench_student.contestants import MLP_ONNX, MLP_TORCH, ONNX, PACKED, TEACHER, TORCH, line_up
from gmoe_ext.bench_student.subject import load
from gmoe_ext.errors import GmoeError
from gmoe_ext.export import pack
from gmoe_ext.timing import Samples, in_bursts

QUICK = ("--batch", "1", "5", "--threads", "1", "2", "--seconds", "0.1")


@pytest.fixture
def run_dir(distilled_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(distilled_run, tmp_path / "run")


@pytest.fixture
def student_file(tmp_path: Path) -> Path:
    model = models.build("rbm", in_dim=24, hidden_dim=16, out_dim=3, num_layers=2, num_experts=4, k=2).eval()
    return pack(model, tmp_path / "student.safetensors", normalize="row_l2")


def test_the_report_of_a_run_has_the_teacher_and_all_others(run_dir: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("matplotlib")
    assert main([str(run_dir), *QUICK]) == 0
    record = json.loads((run_dir / "latency.json").read_text())
    assert list(record["latency"]) == ["1", "5"] and list(record["throughput"]) == ["1", "2"]
    for times in (*record["latency"].values(), *record["throughput"].values()):
        assert list(times) == [PACKED, TORCH, ONNX, MLP_TORCH, MLP_ONNX, TEACHER]
        assert all(0 < one["median_s"] < 1 and one["requests"] > 0 for one in times.values())
    assert record["absent"] == {} and (run_dir / "latency.png").stat().st_size > 10_000
    page = (run_dir / "latency.md").read_text()
    assert "sage" in page and "60 nodes" in page and "![latency](latency.png)" in page


def test_who_is_missing_is_named(
    student_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("onnx", "onnxruntime", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, package, None)
    assert main([str(student_file), "--out", str(tmp_path / "report"), *QUICK]) == 0
    page = (tmp_path / "report/latency.md").read_text()
    for name in (ONNX, MLP_ONNX, TEACHER):
        assert f"- {name}: **not measured**: " in page
    assert "pass --run RUN_DIR" in page and "gmoe_ext[onnx]" in page and "No picture: Plotting needs" in page
    assert not (tmp_path / "report/latency.png").exists()
    assert list(json.loads((tmp_path / "report/latency.json").read_text())["latency"]["1"]) == [
        PACKED,
        TORCH,
        MLP_TORCH,
    ]


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("moe", dict(num_experts=4, k=2), "moe 24 -> 16 -> 3, experts 2 of 4, 2 of 4"),
        ("ensemble", dict(num_members=3), "ensemble 24 -> 16 -> 3, 3 members, experts 1 of 1, 1 of 1"),
    ],
)
def test_every_kind_of_student_is_measured_on_one_thread_and_on_two(
    tmp_path: Path, name: str, options: dict[str, int], text: str
) -> None:
    model = models.build(name, in_dim=24, hidden_dim=16, out_dim=3, num_layers=2, **options).eval()
    path = pack(model, tmp_path / "student.safetensors")
    assert main([str(path), *QUICK]) == 0
    record = json.loads((tmp_path / "latency.json").read_text())
    assert text in record["facts"]["student"] and list(record["throughput"]) == ["1", "2"]


def test_two_threads_answer_as_one(tmp_path: Path) -> None:
    """A batch heavy enough to be shared: what is timed for the throughput is the same answers.

    ONNX files do not depend on threads, so the second line-up takes those of the first.
    """
    for name, options in (("rbm", dict(num_experts=4, k=3)), ("moe", dict(num_experts=4, k=3)), ("ensemble", {})):
        model = models.build(name, in_dim=256, hidden_dim=128, out_dim=5, num_layers=2, **options).eval()
        subject = load(pack(model, tmp_path / "student.safetensors"), None, None, tmp_path)
        requests, answers = subject.requests(1024, seed=0), []
        for threads in (1, 2):
            asks = line_up(subject, requests, threads, tmp_path / name).asks
            assert subject.packed.num_threads == threads
            answers.append([asks[PACKED](i) for i in range(2)])
        assert np.array_equal(*answers)


def test_a_file_in_its_run_finds_the_teacher(run_dir: Path, tmp_path: Path) -> None:
    from gmoe_ext.export.__main__ import main as export

    assert export([str(run_dir), "--dtype", "int8"]) == 0
    subject = load(run_dir / "student.safetensors", None, None, tmp_path)
    assert subject.teacher_name == "sage" and subject.data is not None
    requests = subject.requests(3, seed=0)
    assert requests.x.shape[1:] == (3, 8) and requests.nodes is not None and requests.ids is not None
    asked = line_up(subject, requests, 1, tmp_path).asks[TEACHER](1)
    with torch.inference_mode():
        whole = subject.teacher.model(subject.teacher.x, subject.teacher.graph).logits[requests.ids[1]]
    torch.testing.assert_close(asked, whole)


def test_contestants_that_disagree_are_not_timed(student_file: Path, tmp_path: Path, monkeypatch) -> None:
    from gmoe_ext.bench_student import contestants

    subject = load(student_file, None, None, tmp_path)
    true = contestants.unpack(student_file)
    true.layers[0].bias_EF += 1
    monkeypatch.setattr(contestants, "unpack", lambda path: true)
    with pytest.raises(GmoeError, match="'student, PyTorch' gives other answers than 'packed student' on"):
        line_up(subject, subject.requests(20, seed=0), 1, tmp_path)


def test_bursts_share_the_time_and_leave_out_the_first_request() -> None:
    asked: dict[str, list[int]] = {"quick": [], "slow": []}

    def quick(i: int) -> None:
        asked["quick"].append(i)
        time.sleep(0.0005)

    def slow(i: int) -> None:
        asked["slow"].append(i)
        time.sleep(0.02)

    latency = in_bursts({"quick": quick, "slow": slow}, seconds=0.05, burst_s=0.01)
    assert len(latency["slow"].seconds) == 5 and len(asked["slow"]) == 10
    assert len(asked["quick"]) == len(latency["quick"].seconds) + 5
    assert latency["quick"].median < 0.01 < latency["slow"].median


def test_a_percentile_needs_requests_beyond_it() -> None:
    thousand = Samples(np.arange(1000.0))
    assert thousand.tail(99.9) == pytest.approx(998.001) and thousand.tail(50) == 499.5
    assert Samples(np.arange(999.0)).tail(99.9) is None and Samples(np.arange(19.0)).tail(95) is None


@pytest.mark.parametrize(
    ("flags", "code", "text"),
    [
        (["nowhere.safetensors"], 3, "nowhere.safetensors"),
        (["{file}", "--run", "{folder}"], 2, "expected a run directory"),
        (["{file}", "--batch", "0"], 2, "--batch: expected a whole number from 1 to 1048576, got '0'"),
        (["{file}", "--batch", "1", str(10**30)], 2, "--batch: expected a whole number from 1 to 1048576"),
        (["{file}", "--threads", "1025"], 2, "--threads: expected a whole number from 1 to 1024, got '1025'"),
        (["{file}", "--seconds", "nan"], 2, "--seconds: expected a number above 0"),
        (["{file}", "--seconds", "inf"], 2, "--seconds: expected a number above 0"),
        (["{file}", "--seed", "-1"], 2, "--seed: expected a whole number of at least 0"),
        (["{file}", "--out", "{file}/x"], 2, "cannot make this directory (Not a directory)"),
        (["{file}", "--run", "{run}"], 2, "of 8 features and with its position table; it takes 24"),
    ],
)
def test_what_cannot_be_measured(
    student_file: Path, run_dir: Path, capsys: pytest.CaptureFixture[str], flags: list[str], code: int, text: str
) -> None:
    places = {"file": student_file, "folder": student_file.parent, "run": run_dir}
    assert main([flag.format(**places) for flag in flags]) == code
    assert text in capsys.readouterr().err


def test_threads_double_up_to_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(6)))
    assert default_threads() == [1, 2, 4, 6]
