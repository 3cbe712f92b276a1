"""The runner of claims: everything it measures runs, only right results are reported, and no claim is lost."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import gmoe_ext
from bench import timing
from bench.claims import __main__ as command
from bench.claims import catalogue, run
from bench.claims.claim import Experiment, Flatness, Microseconds, Missing, Ratio, Tail, Variant, cost, speedup
from bench.claims.parity import on_reference
from bench.claims.settings import Settings
from bench.timing import Samples
from gmoe_ext import _native, ops

ROOT = Path(__file__).resolve().parents[2]
QUICK = Settings(quick=True, without=("torch.compile",))
EXPERIMENTS = catalogue.experiments(QUICK)
OF_A_GPU = catalogue.gpu_experiments(QUICK)  # in small, and on the CPU


@pytest.mark.parametrize("experiments", [EXPERIMENTS, OF_A_GPU], ids=["cpu", "cuda"])
def test_names_are_unique(experiments):
    names = [claim.name for experiment in experiments for claim in experiment.claims]
    names += [experiment.name for experiment in experiments]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("experiment", [*EXPERIMENTS, *OF_A_GPU], ids=lambda experiment: experiment.name)
def test_every_claim_runs_on_right_results(experiment):
    outcome = run.run_one(experiment, budget_s=0.0)
    assert not outcome.refusal
    assert [verdict.claim for verdict in outcome.verdicts] == list(experiment.claims)
    for verdict in outcome.verdicts:
        if verdict.value is None:
            assert verdict.reason and verdict.met is None
        else:
            assert math.isfinite(verdict.value)


def test_the_report_has_every_line_and_its_json_is_whole(tmp_path, capsys):
    path = tmp_path / "claims.json"
    arguments = ["--quick", "--seconds", "0", "--only", "cosine_topk", "--without", "torch.compile"]
    assert command.main([*arguments, "--json", str(path)]) == 0
    text = capsys.readouterr().out
    record = json.loads(path.read_text())
    assert {"cpu", "torch", "commit", "date", "threads", "instruction_set", "allocator"} <= set(record["machine"])
    assert record["machine"]["cpu"] in text.splitlines()[0]
    wanted = [experiment for experiment in EXPERIMENTS if experiment.name.startswith("cosine_topk")]
    assert [one["experiment"] for one in record["experiments"]] == [experiment.name for experiment in wanted]
    for experiment, one in zip(wanted, record["experiments"], strict=True):
        assert [claim["name"] for claim in one["claims"]] == [claim.name for claim in experiment.claims]
        for claim in experiment.claims:
            assert f"{claim.name}  " in text and f"({claim.source})" in text
        for samples in one["variants"].values():
            assert samples["median_s"] > 0 and samples["samples"] >= 3


def test_a_wrong_result_refuses_to_report(monkeypatch, capsys):
    right = ops.aggregate

    def wrong(*arguments, **options):
        y = right(*arguments, **options).clone()
        y[len(y) // 2, 0] += 1.0
        return y

    monkeypatch.setattr(ops, "aggregate", wrong)
    assert command.main(["--quick", "--seconds", "0", "--only", "aggregate/600-3000"]) == 1
    text = capsys.readouterr().out
    assert "aggregate/600-3000: REFUSED" in text and "gmoe_ext.reference" in text
    assert "aggregate/600-3000/native" not in text


def test_a_wrong_routing_refuses_to_report(monkeypatch):
    right = ops.cosine_topk

    def wrong(x, memory, k, eps=1e-12):
        gate, index = right(x, memory, k, eps)
        return gate, index.flip(1)

    monkeypatch.setattr(ops, "cosine_topk", wrong)
    (experiment,) = run.select(EXPERIMENTS, ["cosine_topk/500"])
    outcome = run.run_one(experiment, budget_s=0.0)
    assert "'ours'" in outcome.refusal and not outcome.times and not outcome.verdicts


def test_a_rival_that_is_missing_leaves_the_claim_open():
    claims = (speedup("one", "", "rival", 2.0), speedup("either", "", ("rival", "other"), 0.0))
    variants = {"ours": Variant(int), "rival": Missing("package missing: rival"), "other": Variant(int)}
    outcome = run.run_one(Experiment("e", lambda: variants, claims), budget_s=0.0)
    one, either = outcome.verdicts
    assert one.met is None and one.reason == "package missing: rival"
    assert either.met is True


@pytest.mark.slow
def test_torch_compile_is_a_rival_where_there_is_a_compiler():
    settings = Settings(quick=True)
    for experiment in run.select(catalogue.experiments(settings), ["cosine_topk/500", "molecule layer"]):
        outcome = run.run_one(experiment, budget_s=0.0)
        assert not outcome.refusal
        assert "torch.compile" in outcome.times or "compiler" in outcome.missing["torch.compile"]


def test_a_model_on_the_reference_is_back_on_the_compiled_operators_afterwards():
    before = gmoe_ext.backend()
    with pytest.raises(ValueError, match="stop"), on_reference():
        assert gmoe_ext.backend() == "reference"
        raise ValueError("stop")
    assert gmoe_ext.backend() == before


def samples(*seconds: float, work: float = 1.0) -> Samples:
    return Samples(seconds, work)


def test_measures_compare_times_per_unit_of_work():
    times = {"a": samples(1.0, 2.0, 3.0), "b": samples(4.0, work=4.0), "c": samples(9.0)}
    assert Ratio(("a",), ("b",)).value(times, 0) == 2.0
    assert Ratio(("c", "a"), ("b",)).value(times, 0) == 2.0
    assert Ratio(("a",), ("b",)).value(times, -1) == 1.5
    assert Microseconds("c", less="a").value(times, 0) == pytest.approx(7e6)
    assert Flatness(("a", "b", "c")).value(times, 0) == 9.0
    assert Tail("a", 100.0).value(times, 0) == 1.5


def test_directions():
    assert speedup("", "", "rival", 2.0).holds(2.0) and not speedup("", "", "rival", 2.0).holds(1.9)
    assert cost("", "", "floor", 1.5).holds(1.5) and not cost("", "", "floor", 1.5).holds(1.6)


def test_variants_are_interleaved_and_slow_ones_sampled_less(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    order: list[str] = []

    def call(name: str, seconds: float) -> None:
        order.append(name)
        clock.now += seconds

    monkeypatch.setattr(timing, "perf_counter", lambda: clock.now)
    calls = {"fast": (lambda: call("fast", 0.5), 1.0), "slow": (lambda: call("slow", 2.0), 1.0)}
    times = timing.interleave(calls, budget_s=6.0)
    assert len(times["fast"].seconds) == 12 and len(times["slow"].seconds) == 3
    assert times["fast"].at(0) == 0.5 and times["slow"].at(0) == 2.0
    timed = order[2:]  # after a trial of each
    assert [timed[: len(timed) // 3].count("slow"), timed.count("slow")] == [1, 3]


def test_claims_can_be_listed(capsys):
    assert command.main(["--quick", "--list"]) == 0
    text = capsys.readouterr().out
    assert all(claim.name in text for experiment in EXPERIMENTS for claim in experiment.claims)


def test_no_promise_is_lost():
    """Every target of the operators has a claim; what changes here changes what the project promises."""
    sources = {claim.source for experiment in EXPERIMENTS for claim in experiment.claims}
    for words in (
        "2.4x best eager", "9x dense", "85% of packed GEMM", "<= 10 us", "1.7x best eager", "1.7x our fp32",
        "1.5x torch native", "DGL's unweighted", "8x index_add", "2.05x hop-1", "1.8x fp32", "2.2x torch.sparse.mm",
        "within 25%", "12x naive eager", "3x torch.compile", "molbbbp GMoE-GCN", "RbM on amazon_photo", "25 us fp32",
        "15 us bf16", "3x ONNX Runtime's RbM", "p99 <= 2x p50", "1.15 x k x", "x.sum()", "10x eager", "60x with EMA",
        "3x faiss", "3x scikit-learn", "<= 3 us",
    ):  # fmt: skip
        assert any(words in source for source in sources), words


def test_every_operator_with_a_gradient_is_timed():
    from tests.ops.opinfo import OPS

    timed = {experiment.name.rpartition("/")[2] for experiment in OF_A_GPU if "gradients" in experiment.name}
    # The update's gradient is the same operator.
    assert timed == {spec.name for spec in OPS if spec.differentiable} - {"cosine_topk_update"}


def test_no_claim_of_a_gpu_is_lost():
    """Every target of a GPU has a claim; what changes here changes what the project promises."""
    full = catalogue.gpu_experiments(Settings(device="cuda"))
    sources = {claim.source: claim.target for experiment in full for claim in experiment.claims}
    for words, target in (
        ("80% of copy bandwidth", 0.8),
        ("2x (sort + _grouped_mm + index_add) at d <= 256", 2.0),
        ("0.85x the grouped-GEMM floor at d >= 512", 0.85),
        ("1.0x cached cuSPARSE fp32", 1.0),
        ("1.5x cached cuSPARSE fp32 with bf16", 1.5),
        ("every op's backward >= 1.5x the eager reference", 1.5),
        ("0.83x of the base network in plain PyG style", 0.83),
    ):
        assert [found for source, found in sources.items() if words in source] == [target], words


def test_claims_of_a_gpu_can_be_listed(capsys):
    assert command.main(["--quick", "--device", "cuda", "--list"]) == 0
    text = capsys.readouterr().out
    assert all(claim.name in text for experiment in OF_A_GPU for claim in experiment.claims)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    assert command.main(["--quick", "--device", "cuda"]) == 2
    assert "--device cuda: torch sees no GPU here" in capsys.readouterr().err


def test_kernels_that_are_missing_or_do_not_load_are_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_native, "why_no_cuda", lambda: "the kernels do not load\n  fix: rebuild")
    assert timing.EventTimer.unavailable() == "the kernels do not load\n  fix: rebuild"


class Event:
    """Counts what is recorded; every call is said to take 2 ms."""

    recorded = 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        Event.recorded += 1

    def elapsed_time(self, _end):
        return 2.0


def test_each_call_has_its_own_events_and_a_cold_cache(monkeypatch):
    written, called = [], []
    timer = timing.EventTimer.__new__(timing.EventTimer)
    timer._evicting = type("Buffer", (), {"zero_": lambda _self: written.append(len(called))})()
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert timer.seconds(lambda: called.append(Event.recorded), 3) == pytest.approx(6e-3)
    assert written == [0, 1, 2] and called == [1, 3, 5]


def test_claims_of_a_gpu_need_no_configuration_files():
    """A machine lent for its GPU has torch, NumPy and pytest alone."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['jsonargparse', 'yaml', 'rich', 'sklearn', 'onnx', 'gensim']));"
        "from bench.claims import catalogue; from bench.claims.settings import Settings;"
        "assert catalogue.gpu_experiments(Settings(device='cuda'))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
