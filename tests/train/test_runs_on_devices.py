"""Whole runs: on a GPU, where there is one, across devices, and in mixed precision on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("jsonargparse")

from gmoe_ext.train.__main__ import main

from .files import write_molecules, write_nodes

EXPERTS = ("--model.num_experts", "4", "--model.num_hop1", "2", "--model.k", "2")
NODES = ("--data.name", "tiny", "--model.name", "gmoe-gcn", "--model.hidden_dim", "8", *EXPERTS)
MOLECULES = ("--data.name", "tinymol", "--model.name", "gmoe-gin", "--model.hidden_dim", "8", *EXPERTS)
STUDENT = (
    *("--data.name", "tiny", "--teacher.model", "sage", "--teacher.hidden_dim", "8", "--distill.positions", "false"),
    *("--student.model", "rbm", "--student.hidden_dim", "8", "--student.num_experts", "3", "--student.k", "2"),
    *("--distill.pretrain_epochs", "2", "--distill.noise_draws", "1"),
)
TASKS = [pytest.param(NODES, id="nodes"), pytest.param(MOLECULES, id="molecules"), pytest.param(STUDENT, id="student")]


@pytest.fixture
def train(tmp_path: Path):
    """train(flags, place) -> what result.json says."""
    write_nodes(tmp_path / "data")
    write_molecules(tmp_path / "data")

    def start(flags: tuple[str, ...], place: str, epochs: int = 4, *more: str) -> dict:
        if "--student.model" in flags:
            pytest.importorskip("sklearn")
        where = ("--data.root", str(tmp_path / "data"), "--run_dir", str(tmp_path / place))
        assert main([*where, "--train.epochs", str(epochs), *flags, *more]) == 0
        return json.loads((tmp_path / place / "result.json").read_text())

    return start


@pytest.mark.parametrize("precision", ["float32", "bf16-mixed"])
@pytest.mark.parametrize("flags", TASKS)
def test_every_task_runs_and_repeats(train, gpu, flags, precision):
    options = ("--device", "cuda", "--train.precision", precision)
    first, second = (train(flags, place, 4, *options) for place in ("one", "two"))
    assert first["device"].startswith("cuda:")
    assert second["val_best"] == pytest.approx(first["val_best"], abs=0.2)
    assert torch.cuda.max_memory_allocated(gpu) > 0


@pytest.mark.parametrize("order", [("cuda", "cpu"), ("cpu", "cuda")], ids=str)
def test_a_run_goes_on_on_another_device(train, gpu, order):
    first, second = order
    train(NODES, "run", 2, "--device", first)
    result = train(NODES, "run", 5, "--device", second, "--resume", "auto")
    assert result["epochs"] == 5 and result["device"].startswith(second)


@pytest.mark.parametrize("flags", TASKS)
def test_every_task_runs_on_the_cpu_in_mixed_precision(train, flags):
    result = train(flags, "run", 4, "--device", "cpu", "--train.precision", "bf16-mixed")
    assert 0 <= result["val_best"] <= 1
