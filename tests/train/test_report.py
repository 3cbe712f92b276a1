"""``python -m gmoe_ext.report --diff``: two runs compared."""

import json
import os
import shutil
import signal

import pytest

from gmoe_ext import checkpoint, report
from gmoe_ext.errors import DataError
from gmoe_ext.train import run
from gmoe_ext.train.__main__ import main

from .files import write_nodes


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    write_nodes(root)
    flags = ["--data.name", "tiny", "--data.root", str(root), "--model.name", "gcn", "--model.hidden_dim", "8"]
    assert main([*flags, "--train.epochs", "4", "--device", "cpu", "--run_dir", str(root / "a")]) == 0
    return root / "a"


@pytest.fixture
def second(first, tmp_path):
    shutil.copytree(first, tmp_path / "b")
    return tmp_path / "b"


def edit(path, position, **values):
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[position].update(values)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_equal_runs_are_equal_whatever_their_times(first, second, capsys):
    edit(second / "metrics.jsonl", 2, wall_s=1e6)
    assert report.main(["--diff", str(first), str(second)]) == 0
    assert capsys.readouterr().out.startswith("equal:")


def test_the_first_differing_step_is_shown(first, second, capsys):
    for position, loss in ((2, 7.5), (3, 8.5)):
        edit(second / "metrics.jsonl", position, loss=loss)
    assert report.main(["--diff", str(first), str(second)]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("metrics    equal for 2 records, then at phase gcn, epoch 3, step 3: loss: ")
    assert line.endswith(" | 7.5")


def test_a_run_that_is_not_a_number_equals_itself(first, second):
    for directory in (first, second):
        edit(directory / "metrics.jsonl", 0, aux=float("nan"))
    assert report.differences(first, second) == []


def test_a_shorter_run_is_named(first, second):
    lines = (second / "metrics.jsonl").read_text().splitlines(keepends=True)
    (second / "metrics.jsonl").write_text("".join(lines[:3]))
    assert report.differences(first, second) == [f"metrics    equal for 3 records, then '{second}' ends"]


def test_settings_and_weights_are_compared(first, second):
    config = (second / "config.yaml").read_text()
    assert "epochs: 4" in config
    (second / "config.yaml").write_text(config.replace("epochs: 4", "epochs: 9", 1))
    (file,) = (second / "checkpoints").glob("*.safetensors")
    tensors, scalars = checkpoint.load(file)
    name = next(name for name, value in tensors.items() if value.is_floating_point() and value.numel() > 1)
    tensors[name].flatten()[-1] += 0.5
    checkpoint.save(file, tensors, scalars)
    settings, weights = report.differences(first, second)
    assert settings.startswith("settings   ") and settings.endswith("epochs: 4 | 9")
    assert f"1 of {len(tensors)} tensors differ, first '{name}', by at most 0.5" in weights


@pytest.mark.parametrize("damage", ["[1]\n", "{\n", "\xff"])
def test_damaged_and_missing_runs_are_data_errors(first, second, tmp_path, damage, capsys):
    (second / "metrics.jsonl").write_bytes(damage.encode("latin-1"))
    with pytest.raises(DataError, match="one JSON object a line"):
        report.differences(first, second)
    assert report.main(["--diff", str(first), str(tmp_path / "nowhere")]) == 3
    assert "expected a run directory" in capsys.readouterr().err


def test_a_run_stopped_in_a_later_phase_keeps_the_records_of_earlier_ones(tmp_path, monkeypatch):
    write_nodes(tmp_path)
    flags = ["--data.name", "tiny", "--data.root", str(tmp_path), "--teacher.model", "sage", "--student.model", "mlp"]
    flags += ["--teacher.hidden_dim", "8", "--student.hidden_dim", "8", "--train.epochs", "3", "--device", "cpu"]
    flags += ["--distill.positions", "false", "--distill.reliable", "false", "--run_dir"]
    assert main([*flags, str(tmp_path / "whole")]) == 0
    step_done = run.Run.step_done

    def stop(self, task, train, state):
        if (task.phase, state.steps) == ("mlp", 1):
            os.kill(os.getpid(), signal.SIGTERM)
        step_done(self, task, train, state)

    with monkeypatch.context() as patch:
        patch.setattr(run.Run, "step_done", stop)
        assert main([*flags, str(tmp_path / "stopped")]) == 128 + signal.SIGTERM
    assert main([*flags, str(tmp_path / "stopped"), "--resume", "auto"]) == 0
    assert report.differences(tmp_path / "whole", tmp_path / "stopped") == []
