"""The C library predicts what PackedStudent predicts, reports errors, and C programs build against it."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from ctypes import byref, c_char_p, c_float, c_int64, c_void_p
from pathlib import Path

import numpy as np
import pytest
import torch

from gmoe_ext import __version__, models
from gmoe_ext.export import pack
from gmoe_ext.runtime import PackedStudent, include_dir
from gmoe_ext.runtime.__main__ import main

from .c_library import ARGUMENT, FORMAT, OK, SYSTEM, Error, Info, library, loaded, pointer, rows

ROOT = Path(__file__).resolve().parents[2]


def predict(c: ctypes.CDLL, student: c_void_p, x: np.ndarray) -> np.ndarray:
    logits, (given, _held) = np.empty((len(x), 7), np.float32), rows(x)
    assert c.gmoe_predict(student, byref(given), pointer(logits, c_float), None) == OK
    return logits


@pytest.mark.parametrize("count", [0, 1, 5, 300])
def test_answers_are_those_of_the_packed_student(student_file: Path, rows_: np.ndarray, count: int) -> None:
    expected, x = PackedStudent.load(student_file), rows_[:count]
    given, _held = rows(x)
    with loaded(student_file) as (c, student):
        assert np.array_equal(predict(c, student, x), expected.predict(x))
        proba = np.empty((count, 7), np.float32)
        assert c.gmoe_predict_proba(student, byref(given), pointer(proba, c_float), None) == OK
        assert np.array_equal(proba, expected.predict_proba(x))
        top, classes = np.empty((count, 3), np.float32), np.empty((count, 3), np.int64)
        outs = pointer(top, c_float), pointer(classes, c_int64)
        assert c.gmoe_top_classes(student, byref(given), c_int64(3), *outs, None) == OK
        assert np.array_equal(top, expected.top_classes(x, 3)[0])
        assert np.array_equal(classes, expected.top_classes(x, 3)[1])
        gate, index = np.empty((count, 2), np.float32), np.empty((count, 2), np.int64)
        outs = pointer(gate, c_float), pointer(index, c_int64)
        assert c.gmoe_route(student, byref(given), c_int64(1), *outs, None) == OK
        assert np.array_equal(gate, expected.route(x, 1)[0]) and np.array_equal(index, expected.route(x, 1)[1])


@pytest.fixture
def rows_(rows: torch.Tensor) -> np.ndarray:
    return rows.numpy()


def test_sparse_rows_and_positions(tmp_path: Path) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    model = models.build("rbm", in_dim=10, hidden_dim=20, out_dim=7, num_layers=2, num_experts=3, k=2).eval()
    path = pack(model, tmp_path / "s.safetensors", positions=torch.randn(50, 4), normalize="row_l1")
    x = sparse.random(40, 6, density=0.4, format="csr", dtype=np.float32, random_state=0)
    nodes = np.arange(40) - 1
    given, _held = rows(x.data, x.indptr.astype(np.int64), x.indices.astype(np.int32), nodes=nodes, columns=6)
    logits, error = np.empty((40, 7), np.float32), Error()
    with loaded(path) as (c, student):
        assert c.gmoe_predict(student, byref(given), pointer(logits, c_float), byref(error)) == OK, error.text
        assert np.array_equal(logits, PackedStudent.load(path).predict(x, nodes))

        nodes[7] = 50
        assert c.gmoe_predict(student, byref(given), pointer(logits, c_float), byref(error)) == ARGUMENT
        assert error.text == b"gmoe_predict: 'nodes' at position 7 is 50, expected -1 <= node < 50"
        nodes[7] = 0
        given.indices[0] = 6
        assert c.gmoe_predict(student, byref(given), pointer(logits, c_float), byref(error)) == ARGUMENT
        assert error.text == b"gmoe_predict: x.indices leave [0, 6)"


def test_a_student_is_described(student_file: Path) -> None:
    info, name, expected = Info(), c_char_p(), PackedStudent.load(student_file).info()
    with loaded(student_file) as (c, student):
        assert c.gmoe_abi_version() == 1 and c.gmoe_version().decode() in __version__
        assert c.gmoe_student_set_threads(student, 3, None) == OK
        assert c.gmoe_student_describe(student, byref(info), None) == OK
        assert (info.num_inputs, info.num_features, info.position_columns, info.position_nodes) == (24, 24, 0, 0)
        assert (info.num_classes, info.num_layers, info.num_threads, info.has_class_names) == (7, 3, 3, 1)
        assert info.num_bytes == expected["num_bytes"] and info.model == b"rbm"
        assert info.producer.decode() == expected["producer"]
        for output, letter in enumerate(b"abcdefg"):
            assert c.gmoe_student_class_name(student, c_int64(output), byref(name), None) == OK
            assert name.value == bytes([letter])
        k, experts = c_int64(), c_int64()
        assert c.gmoe_student_layer_experts(student, c_int64(2), byref(k), byref(experts), None) == OK
        assert (k.value, experts.value) == (2, 4)


def test_a_student_without_class_names_has_none(tmp_path: Path) -> None:
    path = pack(models.build("mlp", in_dim=4, hidden_dim=8, out_dim=3).eval(), tmp_path / "s")
    name = c_char_p(b"before")
    with loaded(path) as (c, student):
        assert c.gmoe_student_class_name(student, c_int64(0), byref(name), None) == OK
    assert name.value is None


def test_files_are_refused_with_a_reason(student_file: Path, tmp_path: Path) -> None:
    c, error, student = library(), Error(), c_void_p(1)
    missing = os.fsencode(tmp_path / "nowhere")
    assert c.gmoe_student_load(missing, byref(student), byref(error)) == SYSTEM
    assert error.text == b"gmoe_student_load: " + missing + b": No such file or directory" and not student
    cut = tmp_path / "cut"
    cut.write_bytes(student_file.read_bytes()[:-4])
    assert c.gmoe_student_load(os.fsencode(cut), byref(student), byref(error)) == FORMAT
    assert b"cut: tensor" in error.text
    assert c.gmoe_student_load(None, byref(student), byref(error)) == ARGUMENT
    assert error.text == b"gmoe_student_load: 'path' is NULL"
    assert c.gmoe_student_load(missing, byref(student), None) == SYSTEM  # the text is not wanted
    c.gmoe_student_free(None)


def test_long_errors_are_cut_between_characters(tmp_path: Path) -> None:
    c, error, student = library(), Error(), c_void_p()
    for lead in ("", "x"):
        path = os.fsencode(f"{tmp_path}/{lead}" + "\u00e9" * 400)
        assert c.gmoe_student_load(path, byref(student), byref(error)) == SYSTEM
        assert 505 < len(error.text) < 512 and error.text.decode().endswith("\u00e9")


def test_arguments_are_refused_by_name(student_file: Path, rows_: np.ndarray) -> None:
    error, out, index = Error(), np.empty(7, np.float32), np.empty(7, np.int64)
    logits, (good, _held) = pointer(out, c_float), rows(rows_[:1])
    narrow, _held_too = rows(rows_[:1], columns=23)
    negative, none = rows(rows_[:1])[0], rows(rows_[:1])[0]
    negative.count, none.data = -1, None
    with loaded(student_file) as (c, student):
        outs = logits, pointer(index, c_int64), byref(error)
        calls = [
            (lambda: c.gmoe_predict(None, byref(good), logits, byref(error)), "gmoe_predict: 'student' is NULL"),
            (lambda: c.gmoe_predict(student, None, logits, byref(error)), "gmoe_predict: 'x' is NULL"),
            (lambda: c.gmoe_predict(student, byref(good), None, byref(error)), "gmoe_predict: 'logits' is NULL"),
            (lambda: c.gmoe_predict(student, byref(none), logits, byref(error)), "gmoe_predict: 'x.data' is NULL"),
            (lambda: c.gmoe_predict(student, byref(negative), logits, byref(error)), "'x.count' is -1"),
            (lambda: c.gmoe_predict(student, byref(narrow), logits, byref(error)), "of shape [N, 24], got [1, 23]"),
            (lambda: c.gmoe_top_classes(student, byref(good), c_int64(8), *outs), "expected 'k' in [1, 7], got 8"),
            (lambda: c.gmoe_route(student, byref(good), c_int64(3), *outs), "expected 'layer' in [0, 3), got 3"),
            (lambda: c.gmoe_student_set_threads(student, 0, byref(error)), "expected 1 to 1024, got 0"),
        ]
        for call, text in calls:
            assert call() == ARGUMENT and text in error.text.decode()


def test_sixteen_threads_share_a_student(student_file: Path, rows_: np.ndarray) -> None:
    expected = PackedStudent.load(student_file).predict(rows_)
    with loaded(student_file) as (c, student), ThreadPoolExecutor(16) as pool:
        calls = [(i, n) for i in range(0, 250, 7) for n in (1, 3, 50)]
        answers = pool.map(lambda call: predict(c, student, rows_[call[0] : sum(call)]), calls)
        assert all(np.array_equal(a, expected[i : i + n]) for a, (i, n) in zip(answers, calls, strict=True))


@pytest.fixture
def compiler() -> str:
    found = shutil.which("cc")
    return found if found else pytest.skip("needs a C compiler")


def flags(capsys: pytest.CaptureFixture[str], *wanted: str) -> list[str]:
    assert main(wanted) == 0
    return shlex.split(capsys.readouterr().out)


def test_the_c_example_answers_as_the_packed_student(
    compiler: str, student_file: Path, rows_: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "serve"
    command = [compiler, "-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", str(ROOT / "examples/serve.c")]
    subprocess.run([*command, *flags(capsys, "--cflags", "--libs"), "-o", str(program)], check=True)
    text = "\n".join(" ".join(f"{value:.9g}" for value in row) for row in rows_[:20])
    run = subprocess.run([str(program), str(student_file)], input=text, capture_output=True, text=True, check=True)
    proba, classes = PackedStudent.load(student_file).top_classes(rows_[:20])
    expected = [f"{c} {p:.6f} {'abcdefg'[c]}" for p, c in zip(proba[:, 0], classes[:, 0], strict=True)]
    assert run.stdout.splitlines() == expected

    lines, wanted = text.splitlines(), "expected 24 numbers; got"
    short = lines[0].rsplit(" ", 1)[0]
    refused = [(short, "23 numbers"), (lines[0] + " 1", "25 numbers"), ("", "0 numbers"), ("1 x", "something else")]
    refused += [(f"{short} {number}", "something else") for number in ("nan", "inf", "1e400", "1.5.5", "1\0")]
    for line, got in refused:
        given = "\n".join([*lines[:2], line, *lines])
        run = subprocess.run([str(program), str(student_file)], input=given, capture_output=True, text=True)
        assert run.returncode == 1 and run.stderr == f"error: line 3: {wanted} {got}\n"
        assert run.stdout.splitlines() == expected[:2]
    run = subprocess.run([str(program), str(tmp_path)], capture_output=True, text=True, check=False)
    assert run.returncode == 1 and "not a regular file" in run.stderr


def test_the_c_example_takes_the_node_behind_the_features_and_makes_none_up(
    compiler: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = models.build("rbm", in_dim=10, hidden_dim=20, out_dim=7, num_layers=2, num_experts=3, k=2).eval()
    path, program = pack(model, tmp_path / "s.safetensors", positions=torch.randn(50, 4)), tmp_path / "serve"
    command = [compiler, "-std=c11", str(ROOT / "examples/serve.c"), *flags(capsys, "--cflags", "--libs")]
    subprocess.run([*command, "-o", str(program)], check=True)
    x, nodes = np.random.default_rng(0).standard_normal((12, 6)).astype(np.float32), np.arange(12) * 4 - 1
    lines = [",".join([*(f"{value:.9g}" for value in row), str(node)]) for row, node in zip(x, nodes, strict=True)]

    def serve(text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(program), str(path)], input=text, capture_output=True, text=True, check=False)

    proba, classes = PackedStudent.load(path).top_classes(x, nodes=nodes)
    expected = [f"{c} {p:.6f} " for p, c in zip(proba[:, 0], classes[:, 0], strict=True)]
    assert serve("\n".join(lines)).stdout.splitlines() == expected
    wanted = "line 5: expected 6 numbers and a node in [0, 50), or -1 for a node that is not in the table; got "
    features = lines[0].rsplit(",", 1)[0]
    for line, got in (
        (features, "6 numbers"),
        (features + ",0,0,0,0", "10 numbers"),
        (features + ",50", "node 50"),
        (features + ",-2", "node -2"),
        (features + ",1.5", "node 1.5"),
        (features + ",18446744073709551615", "node 1.844674407e+19"),
    ):
        run = serve("\n".join([*lines[:4], line, *lines]))
        assert run.returncode == 1 and run.stderr == f"error: {wanted}{got}\n" and len(run.stdout.splitlines()) == 4


@pytest.mark.parametrize("language", [("c", "-std=c99"), ("c++", "-std=c++11")], ids=["C99", "C++11"])
def test_the_header_compiles_on_its_own(compiler: str, tmp_path: Path, language: tuple[str, str]) -> None:
    source = tmp_path / "alone"
    source.write_text("#include <gmoe_runtime.h>\nint main(void) { return gmoe_abi_version() == GMOE_ABI_VERSION; }\n")
    warnings = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only"]
    subprocess.run([compiler, "-x", *language, *warnings, f"-I{include_dir()}", str(source)], check=True)


def test_the_command_says_what_is_installed(student_file: Path, tmp_path: Path, capsys) -> None:
    assert main([]) == 0
    assert "libgmoe_runtime.so" in capsys.readouterr().out
    assert main(["--student", str(student_file)]) == 0
    assert '"model": "rbm"' in capsys.readouterr().out
    assert main(["--student", str(tmp_path / "none")]) == 3
    assert "no such file" in capsys.readouterr().err


def test_the_command_needs_no_torch() -> None:
    program = (
        "import sys; sys.modules['torch'] = None; import runpy\n"
        "sys.argv = ['gmoe_ext.runtime']; runpy.run_module('gmoe_ext.runtime', run_name='__main__')"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0 and "no torch" in run.stdout, run.stderr
