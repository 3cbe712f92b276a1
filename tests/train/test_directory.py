"""The run directory: one run at a time, nothing of an earlier run lost by a mistake, leftovers removed."""

import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from gmoe_ext import checkpoint
from gmoe_ext.errors import ConfigError
from gmoe_ext.train import run as run_module
from gmoe_ext.train.__main__ import main
from gmoe_ext.train.directory import claimed

from .files import write_nodes

STUDENT = [
    "--teacher.model",
    "sage",
    "--teacher.hidden_dim",
    "8",
    "--student.model",
    "mlp",
    "--student.hidden_dim",
    "8",
]
STUDENT += ["--distill.positions", "false", "--distill.reliable", "false"]


@pytest.fixture
def root(tmp_path):
    write_nodes(tmp_path / "data")
    return tmp_path


def train(root, *flags, place="run", model=("--model.name", "gcn", "--model.hidden_dim", "8")):
    places = ["--data.root", str(root / "data"), "--run_dir", str(root / place), "--device", "cpu"]
    return main(["--data.name", "tiny", "--train.epochs", "2", *places, *model, *flags])


def content(folder):
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    return {name: (path.read_bytes(), path.stat().st_mtime_ns) for name, path in found.items()}


def test_a_directory_in_use_is_refused_and_named(root, capsys):
    with claimed(root / "run"):
        assert train(root) == 2
    told = capsys.readouterr().err
    assert "another run is in it, process" in told and f"{os.getpid()}" in told and "fix: another --run_dir" in told
    assert content(root / "run") == {}
    assert train(root) == 0


def test_a_killed_run_leaves_no_claim(root):
    code = "import sys, time; from pathlib import Path; from gmoe_ext.train.directory import claimed\n"
    code += "with claimed(Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, str(root / "run")], stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"in\n"
    with pytest.raises(ConfigError, match=f"process {other.pid} on"), claimed(root / "run"):
        pass
    other.kill()
    other.communicate()
    with claimed(root / "run"):
        pass


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--data.name", "typo"], 3),
        (["--data.root", "nowhere"], 3),
        (["--data.split", "typo"], 3),
        (["--model.name", "gmoe-gcn", "--model.num_experts", "2", "--model.k", "3"], 2),
        (["--model.dropout", "2"], 2),
        (["--train.lr", "0.5", "--resume", "auto"], 2),
        (["--seed", "1", "--resume", "auto"], 2),
        (["--resume", "nowhere"], 2),
        (["--device", "cuda:99"], 2),
        ([*STUDENT, "--student.model", "rbm", "--student.num_experts", "61"], 2),
        ([*STUDENT, "--student.model", "rbm", "--student.num_experts", "2", "--student.k", "3"], 2),
        ([*STUDENT, "--model.name", "gcn", "--model.hidden_dim", str(2**20), "--model.num_layers", "9"], 2),
    ],
)
def test_a_mistake_changes_nothing_of_a_finished_run(root, capsys, flags, code):
    assert train(root) == 0
    before = content(root / "run")
    assert train(root, *flags) == code, capsys.readouterr().err
    assert content(root / "run") == before
    told = capsys.readouterr().err
    assert told.startswith("error: ") and "Traceback" not in told


def test_a_finished_run_is_not_overwritten_by_another_that_is_continued_in_its_place(root, capsys):
    assert train(root, place="a") == train(root, "--seed", "1", place="b") == 0
    before = content(root / "b")
    assert train(root, "--resume", str(root / "a"), place="b") == 2
    assert "already holds another run" in capsys.readouterr().err
    assert content(root / "b") == before


def test_a_path_given_twice_goes_on_from_its_own_progress(root, capsys):
    assert train(root, place="a") == 0
    more = ["--resume", str(root / "a"), "--train.epochs"]
    assert train(root, *more, "4", place="b") == 0
    assert "continues after step 2 (epoch 2" in capsys.readouterr().out
    assert train(root, *more, "6", place="b") == 0
    assert "continues after step 4 (epoch 4" in capsys.readouterr().out
    assert len((root / "b" / "metrics.jsonl").read_text().splitlines()) == 6
    other = content(root / "b")
    assert train(root, "--seed", "5", place="c") == 0
    assert train(root, "--seed", "5", "--resume", str(root / "c"), place="b") == 2
    assert content(root / "b") == other


@pytest.mark.parametrize("model", [("--model.name", "gcn"), STUDENT])
@pytest.mark.parametrize("changed", ["y", "x_data", "edge_index"])
def test_other_data_do_not_continue_a_run(root, capsys, model, changed):
    assert train(root, model=model) == 0
    before = content(root / "run")
    with np.load(root / "data" / "tiny.npz") as file:
        arrays = dict(file)
    arrays[changed] = arrays[changed][..., ::-1].copy()
    np.savez(root / "data" / "tiny.npz", **arrays)
    assert train(root, "--resume", "auto", model=model) == 2
    told = capsys.readouterr().err
    assert "sha256 of tiny.npz" in told and "under different settings or data" in told
    assert content(root / "run") == before
    assert train(root, model=model) == 0


def test_a_move_aside_that_was_killed_is_finished(root, monkeypatch):
    assert train(root) == 0
    rename, moved = type(root).rename, []

    def killed(self, target):
        moved.append(self)
        if len(moved) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(type(root), "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        train(root, "--seed", "1")
    monkeypatch.undo()
    assert train(root, "--seed", "1") == 0
    assert json.loads((root / "run" / "previous" / "result.json").read_text())["seed"] == 0
    assert (root / "run" / "previous" / "checkpoints" / "gcn.safetensors").exists()
    assert json.loads((root / "run" / "result.json").read_text())["seed"] == 1


def test_drafts_of_killed_saves_are_removed_at_the_next_start(root):
    code = "import os, sys; from pathlib import Path; from gmoe_ext.atomic_write import atomic_write\n"
    code += "held = [atomic_write(Path(sys.argv[1]) / name) for name in ('result.json', 'checkpoints/x.safetensors')]\n"
    code += "for draft in held: draft.__enter__().write_text('half')\n"
    code += "os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(root / "run")], check=False)
    assert len(list((root / "run").rglob(".*.tmp"))) == 2
    (root / "run" / ".mine.tmp").write_text("a file of the user's")
    assert train(root, "--resume", "auto") == 0
    assert [path.name for path in (root / "run").rglob(".*.tmp")] == [".mine.tmp"]


@pytest.mark.parametrize("place", ["file", "file/x", "data/tiny.npz"])
def test_a_directory_that_cannot_be_made_is_an_error_of_one_sentence(root, capsys, place):
    (root / "file").write_text("kept")
    assert train(root, place=place) == 2
    assert "cannot be written to: " in capsys.readouterr().err
    assert (root / "file").read_text() == "kept"


@pytest.mark.parametrize("at", ["metrics", "checkpoint", "result"])
def test_a_full_disk_is_an_error_of_one_sentence_and_loses_nothing(root, capsys, monkeypatch, at):
    assert train(root) == 0
    before = content(root / "run")
    flags = ["--resume", "auto", "--train.epochs", "4"]

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    places = {
        "metrics": (run_module, "open"),
        "result": (sys.modules["gmoe_ext.train.report"], "result_record"),
    }
    if at == "checkpoint":
        import safetensors.torch

        monkeypatch.setattr(safetensors.torch, "save", full)
    else:
        monkeypatch.setattr(*places[at], full, raising=at != "metrics")  # whose name is a builtin's
    assert train(root, *flags) == 3
    told = capsys.readouterr().err
    assert "cannot be written: No space left on device\n  fix: make space" in told and "--resume auto" in told
    monkeypatch.undo()
    kept = content(root / "run")
    assert all(kept[name][0] == before[name][0] for name in before if "checkpoints" in str(name)) or at == "result"
    assert train(root, *flags) == 0
    assert len((root / "run" / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_command_runs_in_a_thread(root):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(train(root)))
    thread.start()
    thread.join()
    assert codes == [0]


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(root, capsys):
    flags = ["--train.checkpoint_s", "0", "--train.epochs", "5"]
    assert train(root, *flags, place="whole") == train(root, *flags) == 0
    path = root / "run" / "checkpoints" / "gcn.safetensors"
    for _ in range(2):  # the second time the one before it is what the first time left
        damaged = bytearray(path.read_bytes())
        damaged[-5] ^= 4
        path.write_bytes(damaged)
        assert train(root, *flags, "--resume", "auto") == 0
        told = capsys.readouterr().out
        assert f"gcn        checkpoint {path} is damaged" in told and f"{checkpoint.previous(path)}" in told
        whole, _ = checkpoint.load(root / "whole" / "checkpoints" / "gcn.safetensors")
        again, _ = checkpoint.load(path)
        assert all((again[name] == whole[name]).all() for name in whole)
    checkpoint.previous(path).write_bytes(b"")
    path.write_bytes(b"")
    assert train(root, *flags, "--resume", "auto") == 3
    assert "fix: --resume never" in capsys.readouterr().err
