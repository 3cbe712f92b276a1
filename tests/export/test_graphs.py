"""ONNX graphs and torch archives predict what their models predict."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gmoe_ext
from gmoe_ext.errors import DataError, MissingExtraError
from gmoe_ext.export import compare, load_onnx, load_pt2, pack, random_rows, save_onnx, save_pt2
from gmoe_ext.export.__main__ import main
from gmoe_ext.models.registry import Model
from gmoe_ext.runtime import PackedStudent

from .test_pack import trained

MISSING = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
ONNX = pytest.param(
    "onnx", marks=pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (extra 'onnx')")
)
FORMATS = {"onnx": (save_onnx, load_onnx), "pt2": (save_pt2, load_pt2)}
TABLE = torch.randn(50, 5, generator=torch.Generator().manual_seed(2))
SIZES = dict(in_dim=21, hidden_dim=34, out_dim=6)
PARTS = ("exported_program.json", "state_dict.pt", "constants.pt", "example_inputs.pt")  # of torch's older archives
EXPERTS = dict(num_experts=4, k=2)


def in_pretraining(model: Model) -> Model:
    model.set_pretraining(True)
    return model


CASES: dict[str, Any] = {
    "rbm": lambda: (trained("rbm", **SIZES, **EXPERTS, num_layers=3, norm="batch"), {}),
    "rbm, table": lambda: (
        trained("rbm", **SIZES, **EXPERTS, num_layers=2),
        {"positions": TABLE, "normalize": "row_l1", "class_names": list("abcdef")},
    ),
    "rbm, columns": lambda: (trained("rbm", **SIZES, num_experts=3, k=3), {"position_dim": 5, "normalize": "row_l2"}),
    "positions alone": lambda: (trained("mlp", in_dim=5, hidden_dim=8, out_dim=3), {"positions": TABLE}),
    "mlp": lambda: (trained("mlp", **SIZES, num_layers=2, norm="batch"), {"normalize": "row_l1"}),
    "moe": lambda: (trained("moe", **SIZES, **EXPERTS, num_layers=3, norm="batch"), {}),
    "moe, released code, table": lambda: (
        trained("moe", **SIZES, **EXPERTS, num_layers=2, variant="released_code"),
        {"positions": TABLE, "normalize": "row_l1"},
    ),
    "ensemble": lambda: (trained("ensemble", **SIZES, num_members=3, norm="batch"), {"position_dim": 5}),
    "one layer": lambda: (trained("rbm", **SIZES, **EXPERTS, num_layers=1), {}),
    "pre-training": lambda: (in_pretraining(trained("rbm", **SIZES, **EXPERTS, num_layers=2)), {}),
}


@pytest.mark.parametrize("format", [ONNX, "pt2"])
@pytest.mark.parametrize("case", CASES)
def test_a_graph_answers_as_its_model(tmp_path: Path, format: str, case: str) -> None:
    model, content = CASES[case]()
    save, load = FORMATS[format]
    path = save(model, tmp_path / "student", **content)
    student, packed = load(path), PackedStudent.load(pack(model, tmp_path / "packed", **content))
    rows = random_rows(student, content.get("positions"))
    found = compare(model, student, rows, content.get("positions"))
    assert found.largest_difference <= 1e-5 and found.same_class == 1, found
    for count in (0, 1, 2, 7):
        some = (rows.x[:count], None if rows.nodes is None else rows.nodes[:count])
        logits = student.predict(*some)
        assert logits.shape == (count, packed.num_outputs)
        np.testing.assert_allclose(logits, packed.predict(*some), atol=2e-5)
    assert [path.name for path in tmp_path.glob("*")] in (["student", "packed"], ["packed", "student"])


@pytest.mark.parametrize("format", [ONNX, "pt2"])
def test_a_graph_has_the_document_but_no_paths_of_the_exporting_machine(tmp_path: Path, format: str) -> None:
    model, content = CASES["rbm, table"]()
    save, load = FORMATS[format]
    path = save(model, tmp_path / "student", **content)
    info = load(path).info()
    assert info["model"] == "rbm" and info["classes"] == list("abcdef")
    assert info["features"] == {"columns": 16, "normalize": "row_l1", "positions": {"nodes": 50, "columns": 5}}
    data = path.read_bytes()
    if zipfile.is_zipfile(path):
        archive = zipfile.ZipFile(path)
        data = b"".join(archive.read(name) for name in archive.namelist())
    for place in (Path(gmoe_ext.__file__).parent, Path(torch.__file__).parent):
        assert str(place).encode() not in data


def test_an_archive_needs_only_torch(tmp_path: Path) -> None:
    model, content = CASES["rbm, table"]()
    path, x = save_pt2(model, tmp_path / "student.pt2", **content), np.ones((3, 16), np.float32)
    program = (
        "import sys; sys.modules['gmoe_ext'] = None; import torch\n"
        "module = torch.export.load(sys.argv[1]).module()\n"
        "print(module(torch.ones(3, 16), torch.tensor([0, 49, -1])).tolist())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", program, str(path)], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    np.testing.assert_allclose(json.loads(run.stdout), load_pt2(path).predict(x, np.array([0, 49, -1])), atol=1e-6)


def test_a_missing_library_is_named_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"needs 'onnx'.*pip install 'gmoe_ext\[onnx\]'"):
        save_onnx(CASES["mlp"]()[0], tmp_path / "student.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", [ONNX, "pt2"])
def test_a_foreign_graph_is_refused(tmp_path: Path, format: str) -> None:
    path, module = tmp_path / "other", torch.nn.Linear(2, 2).eval()
    if format == "pt2":
        torch.export.save(torch.export.export(module, (torch.ones(2, 2),)), path)
    else:
        torch.onnx.export(module, (torch.ones(2, 2),), path, dynamo=True, verbose=False, external_data=False)
    with pytest.raises(DataError, match="expected a student exported by gmoe_ext"):
        FORMATS[format][1](path)


class Payload:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_no_file_runs_code_or_ends_in_anothers_error(tmp_path: Path) -> None:
    path, mark, good = tmp_path / "student.pt2", tmp_path / "mark", tmp_path / "good.pt2"
    pickled = pickle.dumps(Payload(mark))
    save_pt2(CASES["mlp"]()[0], good)
    archives = [{"version": b"8.14", **{f"serialized_{part}": pickled for part in PARTS}}]
    with zipfile.ZipFile(good) as whole:
        content = {name: whole.read(name) for name in whole.namelist()}
    archives += [{**content, name: pickled} for name in content if name.endswith(".pt")]
    assert len(archives) > 1
    for files in archives:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        with contextlib.suppress(DataError):  # torch may not need the part that was replaced
            load_pt2(path)
        assert not mark.exists() and "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    for data in (b"", b"nothing", bytes(1000), b"PK\x03\x04" + bytes(100), good.read_bytes()[:-50], pickled):
        path.write_bytes(data)
        for load in (load_pt2, load_onnx) if not MISSING else (load_pt2,):
            with pytest.raises(DataError, match="expected a student exported by gmoe_ext"):
                load(path)


@pytest.mark.parametrize("format", [ONNX, "pt2"])
def test_the_command_writes_a_graph_and_compares_it_with_its_model(
    distilled_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    run_dir = shutil.copytree(distilled_run, tmp_path / "run")
    rows = tmp_path / "rows.npz"
    np.savez(rows, x=np.random.default_rng(0).random((30, 8)), nodes=np.arange(30) - 1, y=np.arange(30) % 3)
    assert main([str(run_dir), "--format", format, "--rows", str(rows)]) == 0
    out = capsys.readouterr().out
    assert "same class in 100.00%, of 256 rows" in out and "of 30 rows" in out and "positions: 60 nodes" in out
    assert (run_dir / f"student.{format}").is_file() and not (run_dir / "student.safetensors").exists()
    assert main([str(run_dir), "--format", format, "--dtype", "int8"]) == 2
    assert "--dtype int8 is only for --format packed" in capsys.readouterr().err


def test_the_command_asks_for_onnxruntime_first(
    distilled_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    output = tmp_path / "student.onnx"
    assert main([str(distilled_run), "--format", "onnx", "--output", str(output)]) == 2
    assert "pip install 'gmoe_ext[onnx]'" in capsys.readouterr().err and not output.exists()
