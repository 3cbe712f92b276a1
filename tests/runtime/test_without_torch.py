"""Serving needs NumPy and the compiled library, nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gmoe_ext import models
from gmoe_ext.export import pack
from gmoe_ext.runtime import PackedStudent

BLOCK_TORCH = "import sys; sys.modules['torch'] = None\n"


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [("rbm", dict(num_experts=4, k=2)), ("moe", dict(num_experts=4, k=2)), ("ensemble", dict(num_members=3))],
)
def test_a_student_answers_where_torch_cannot_be_imported(
    rows: torch.Tensor, tmp_path: Path, name: str, options: dict[str, int]
) -> None:
    model = models.build(name, in_dim=rows.shape[1], hidden_dim=16, out_dim=3, num_layers=2, **options).eval()
    student_file = pack(model, tmp_path / "student.safetensors")
    np.save(tmp_path / "x.npy", rows.numpy())
    program = BLOCK_TORCH + (
        "import numpy as np; from gmoe_ext.runtime import PackedStudent\n"
        "np.save(sys.argv[3], PackedStudent.load(sys.argv[1]).predict(np.load(sys.argv[2])))"
    )
    result = run(program, str(student_file), str(tmp_path / "x.npy"), str(tmp_path / "y.npy"))
    assert result.returncode == 0, result.stderr
    assert np.array_equal(np.load(tmp_path / "y.npy"), PackedStudent.load(student_file).predict(rows.numpy()))


def test_errors_need_no_torch_either(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"no student")
    program = BLOCK_TORCH + (
        "from gmoe_ext.errors import DataError; from gmoe_ext.runtime import PackedStudent\n"
        "try: PackedStudent.load(sys.argv[1])\n"
        "except DataError as error: print(error)"
    )
    result = run(program, str(tmp_path / "x"))
    assert "the header claims" in result.stdout, result.stderr


def test_import_is_quick_and_brings_no_torch() -> None:
    program = (
        # The processor's time, which a busy machine does not stretch.
        "import sys, time; import gmoe_ext; start = time.process_time(); import gmoe_ext.runtime\n"
        "print(time.process_time() - start); assert 'torch' not in sys.modules"
    )
    times = []
    for _ in range(3):
        result = run(program)
        assert result.returncode == 0, result.stderr
        times.append(float(result.stdout))
    assert min(times) < 0.15, times


def test_a_missing_library_is_named() -> None:
    program = (
        "import importlib.util as u, sys; found = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'gmoe_ext._runtime' else found(name, *rest)\n"
        "from gmoe_ext.errors import NativeError\n"
        "try: import gmoe_ext.runtime\n"
        "except NativeError as error: print(error)"
    )
    result = run(program)
    assert "the serving library is not built for Python" in result.stdout and "fix: pip install" in result.stdout
