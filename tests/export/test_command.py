"""``python -m gmoe_ext.export RUN_DIR`` on a training run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gmoe_ext import checkpoint
from gmoe_ext.export.__main__ import main
from gmoe_ext.export.run import load_student
from gmoe_ext.runtime import PackedStudent


@pytest.fixture
def run_dir(distilled_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(distilled_run, tmp_path / "run")


def test_the_best_student_is_packed(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run_dir)]) == 0
    assert "positions: 60 nodes" in capsys.readouterr().out
    packed, student = PackedStudent.load(run_dir / "student.safetensors"), load_student(run_dir)
    features = packed.info()["features"]
    expected = {"columns": 8, "names": None, "normalize": "row_l1", "position_columns": 4, "position_nodes": 60}
    assert features == expected
    x, nodes = torch.randn(20, 8), torch.arange(20)
    rows = torch.cat([x / x.abs().sum(1, keepdim=True), student.positions[nodes]], 1)
    np.testing.assert_allclose(packed.predict(x.numpy(), nodes.numpy()), student.model(rows).logits.detach(), atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_what_narrow_weights_cost_is_printed(run_dir: Path, capsys: pytest.CaptureFixture[str], dtype: str) -> None:
    rows = run_dir / "rows.npz"
    np.savez(rows, x=np.random.default_rng(0).random((30, 8)), nodes=np.arange(30) - 1, y=np.arange(30) % 3 - 1)
    assert main([str(run_dir), "--dtype", dtype, "--rows", str(rows)]) == 0
    out = capsys.readouterr().out
    assert f"{dtype} weights" in out and "of 256 rows" in out and "points against the model), of 30 rows" in out
    info = PackedStudent.load(run_dir / "student.safetensors").info()
    assert {layer["weights"] for layer in info["layers"]} == {dtype}


def test_rows_to_measure_on_are_checked(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run_dir / "rows.npz"
    for arrays, text in (
        (dict(z=np.ones(3)), "array 'x' is missing"),
        (dict(x=np.full((3, 8), np.nan)), "expected finite values in 'x'"),
        (dict(x=np.ones((3, 8)), nodes=np.zeros(3)), "expected 'nodes' of integer values"),
        (dict(x=np.ones((3, 8)), nodes=np.array([0, 59, 60])), "expected 'nodes' in [-1, 60), got 60 in row 2"),
        (dict(x=np.ones((3, 8)), nodes=np.array([0, -2, 0])), "got -2 in row 1"),
        (dict(x=np.ones((3, 8)), y=np.array(["a", "b", "c"])), "expected 'y' of integer values"),
        (dict(x=np.ones((3, 8)), y=np.array([0, -1, 99])), "expected 'y' in [-1, 3), got 99 in row 2"),
        (dict(x=np.ones((3, 8)), nodes=np.zeros(2, int)), r"expected 'nodes' of shape [3], got [2]"),
        (dict(x=np.ones((3, 8)), y=np.zeros((3, 1), int)), r"expected 'y' of shape [3], got [3, 1]"),
    ):
        np.savez(path, **arrays)
        assert main([str(run_dir), "--rows", str(path)]) == 3
        assert text in capsys.readouterr().err
    assert not (run_dir / "student.safetensors").exists()


def test_weights_are_those_of_the_best_epoch(run_dir: Path) -> None:
    best = {n.removeprefix("best/"): v for n, v in load_file(run_dir / "checkpoints/rbm.safetensors").items()}
    weights = load_student(run_dir).model.state_dict()
    assert all(torch.equal(value, best[name]) for name, value in weights.items())


def test_without_saved_inputs_callers_pass_positions(run_dir: Path) -> None:
    (run_dir / "checkpoints/inputs.safetensors").unlink()
    assert main([str(run_dir), "--output", str(run_dir / "bare.safetensors")]) == 0
    assert PackedStudent.load(run_dir / "bare.safetensors").predict(np.ones((2, 12))).shape == (2, 3)


def test_a_directory_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "expected a run directory" in capsys.readouterr().err


def test_a_run_without_a_student(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_dir / "checkpoints/rbm.safetensors").unlink()
    assert main([str(run_dir)]) == 2
    assert "no trained student (rbm, moe, mlp, ensemble)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_dim", 2**40), ("num_layers", 10**9), ("num_experts", 4), ("k", "two"), ("surprise", 1), ("in_dim", -1)],
)
def test_options_that_do_not_fit_the_weights_are_refused_before_memory_is_asked_for(
    run_dir: Path, capsys: pytest.CaptureFixture[str], key: str, value: object
) -> None:
    path = run_dir / "checkpoints/rbm.safetensors"
    tensors, scalars = checkpoint.load(path)
    scalars["model"]["options"][key] = value
    checkpoint.save(path, tensors, scalars)
    assert main([str(run_dir)]) == 3
    assert f"{path} does not fit the model it names" in capsys.readouterr().err


def test_damaged_checkpoints(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run_dir / "checkpoints/rbm.safetensors"
    sound = path.read_bytes()
    path.write_bytes(sound[:-8])
    assert main([str(run_dir)]) == 3
    assert "is damaged" in capsys.readouterr().err

    path.write_bytes(sound)
    tensors, scalars = checkpoint.load(path)
    del tensors["best/layers.0.experts.weight"]
    checkpoint.save(path, tensors, scalars)
    assert main([str(run_dir)]) == 3
    assert "does not fit the model it names" in capsys.readouterr().err

    tensors, scalars = checkpoint.load(run_dir / "checkpoints/inputs.safetensors")
    checkpoint.save(run_dir / "checkpoints/inputs.safetensors", tensors, {"class_names": 3})
    path.write_bytes(sound)
    assert main([str(run_dir)]) == 3
    assert "expected a list of texts as 'class_names'" in capsys.readouterr().err

    save_file(tensors, path, metadata={"format": "pt"})
    assert main([str(run_dir)]) == 3
    assert "expected a checkpoint of format" in capsys.readouterr().err


@pytest.mark.parametrize("scale", [1e13, -5.8e37, float("inf"), float("nan")])
@pytest.mark.parametrize("format", ["packed", "pt2"])
def test_absurd_weights_are_refused_and_an_older_file_stays(run_dir: Path, capsys, scale: float, format: str) -> None:
    output, path = run_dir / "student.safetensors", run_dir / "checkpoints/rbm.safetensors"
    output.write_bytes(b"an older student")
    tensors, scalars = checkpoint.load(path)
    tensors["best/layers.0.experts.weight"][0, 0, 0] = scale
    checkpoint.save(path, tensors, scalars)
    assert main([str(run_dir), "--format", format, "--output", str(output)]) == 2
    assert "training diverged" in capsys.readouterr().err
    assert output.read_bytes() == b"an older student"


def test_a_file_that_differs_from_its_model_does_not_replace_another(run_dir: Path, monkeypatch, capsys) -> None:
    output = run_dir / "student.safetensors"
    output.write_bytes(b"an older student")
    monkeypatch.setattr("gmoe_ext.export.__main__.TOLERANCE", -1.0)
    assert main([str(run_dir)]) == 1
    assert "differs from its model" in capsys.readouterr().err
    assert output.read_bytes() == b"an older student" and not list(run_dir.glob(".*tmp"))


def test_an_output_that_is_an_input_is_refused(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run_dir / "rows.npz"
    np.savez(rows, x=np.ones((3, 8)), nodes=np.zeros(3, int))
    (link := run_dir / "link.safetensors").symlink_to(run_dir / "checkpoints/rbm.safetensors")
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    for output in (rows, link, run_dir / "checkpoints" / "inputs.safetensors"):
        assert main([str(run_dir), "--rows", str(rows), "--output", str(output)]) == 2
        assert "is the input" in capsys.readouterr().err
    assert main([str(run_dir), "--output", str(run_dir / "no" / "s.safetensors")]) == 2
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def test_names_of_features_are_stored(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_dir / "names.txt"
    names.write_text("\n".join("abcdefg") + "\n\u00e9\n", encoding="utf-8")
    assert main([str(run_dir), "--feature_names", str(names)]) == 0
    assert PackedStudent.load(run_dir / "student.safetensors").feature_names == [*"abcdefg", "\u00e9"]
    for text, reason in (("a\nb", "expected 8 'feature_names', got 2"), ("a\n" * 8, "got 'a' twice")):
        names.write_text(text)
        assert main([str(run_dir), "--feature_names", str(names)]) == 2
        assert reason in capsys.readouterr().err
    assert PackedStudent.load(run_dir / "student.safetensors").feature_names == [*"abcdefg", "\u00e9"]
