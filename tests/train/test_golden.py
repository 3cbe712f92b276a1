"""Curves of real recipes, small and short: the same in every version, resumed or not, on one thread and on two."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from gmoe_ext import report
from gmoe_ext.train import run
from gmoe_ext.train.__main__ import main

ROOT = os.environ.get("GMOE_EXT_DATA")
pytestmark = pytest.mark.skipif(ROOT is None, reason="set GMOE_EXT_DATA to the folder with molesol and cora_planetoid")

RUNS = {
    "gmoe-gcn": [
        *("--config", "molesol_gmoe-gcn", "--model.hidden_dim", "24", "--train.epochs", "3"),
    ],
    "rbm": [
        *("--config", "cora_planetoid_rbm_tran", "--train.epochs", "4", "--distill.pretrain_epochs", "2"),
        *("--teacher.hidden_dim", "16", "--student.hidden_dim", "32", "--distill.kmeans_restarts", "1"),
        *("--distill.num_walks", "1", "--distill.walk_length", "8", "--distill.position_dim", "8"),
    ],
}
# Training loss of every epoch, by phase. A change of it is a change of the training: say why in the commit.
LOSSES = {
    "gmoe-gcn": {"gmoe-gcn": [11.484646, 11.429807, 10.962799]},
    "rbm": {
        "teacher": [1.950585, 1.947189, 1.944855, 1.944808],
        "rbm": [0.395118, 0.392286, 0.399176, 0.388053, 0.382586, 0.376727],
    },
}


def train(name: str, run_dir: Path, *more: str) -> int:
    return main([*RUNS[name], "--device", "cpu", "--data.root", str(ROOT), "--run_dir", str(run_dir), *more])


def losses(run_dir: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for record in map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines()):
        found.setdefault(record["phase"], []).append(record["loss"])
    return found


@pytest.fixture(scope="module", params=RUNS)
def whole(request, tmp_path_factory):
    """A run on one thread: its name and its directory."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp(request.param)
    assert train(request.param, directory) == 0
    torch.set_num_threads(threads)
    return request.param, directory


def test_every_version_learns_the_same(whole):
    name, directory = whole
    got = losses(directory)
    assert got.keys() == LOSSES[name].keys()
    for phase, wanted in LOSSES[name].items():
        # Other processors sum in another order.
        assert got[phase] == pytest.approx(wanted, rel=2e-3)


def test_two_threads_learn_the_same_up_to_rounding(whole, tmp_path):
    name, directory = whole
    torch.set_num_threads(2)
    assert train(name, tmp_path) == 0
    got, wanted = losses(tmp_path), losses(directory)
    assert got.keys() == wanted.keys()
    assert all(got[phase] == pytest.approx(wanted[phase], rel=1e-4) for phase in wanted)


@pytest.mark.parametrize("step", [1, 3])
def test_a_resumed_run_is_the_run(whole, tmp_path, monkeypatch, step):
    name, directory = whole
    step_done = run.Run.step_done

    def stop(self, task, train, state):
        if (task.phase, state.steps) == (name, step):
            os.kill(os.getpid(), signal.SIGTERM)
        step_done(self, task, train, state)

    with monkeypatch.context() as patch:
        patch.setattr(run.Run, "step_done", stop)
        assert train(name, tmp_path) == 128 + signal.SIGTERM
    assert train(name, tmp_path, "--resume", "auto") == 0
    assert report.differences(directory, tmp_path) == []
