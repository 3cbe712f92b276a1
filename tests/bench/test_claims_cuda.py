"""The claims of a GPU: none is lost, and a clear word where no GPU is. test_claims.py runs them all on the CPU."""

from __future__ import annotations

import pytest
import torch

from bench import timing
from bench.claims import __main__ as command
from bench.claims import catalogue
from bench.claims.settings import Settings
from gmoe_ext import _native

QUICK = Settings(quick=True, without=("torch.compile",))
EXPERIMENTS = catalogue.gpu_experiments(QUICK)


def test_every_operator_with_a_gradient_is_timed():
    from tests.ops.opinfo import OPS

    timed = {experiment.name.rpartition("/")[2] for experiment in EXPERIMENTS if "gradients" in experiment.name}
    # The update's gradient is the same operator.
    assert timed == {spec.name for spec in OPS if spec.differentiable} - {"cosine_topk_update"}


def test_no_promise_is_lost():
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


def test_claims_can_be_listed(capsys):
    assert command.main(["--quick", "--device", "cuda", "--list"]) == 0
    text = capsys.readouterr().out
    assert all(claim.name in text for experiment in EXPERIMENTS for claim in experiment.claims)


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
