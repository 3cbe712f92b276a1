"""A file of rows is answered in constant memory, every bad row is listed, and a killed run continues."""

from __future__ import annotations

import csv
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gmoe_ext import models
from gmoe_ext.errors import ConfigError, DataError
from gmoe_ext.export import pack
from gmoe_ext.predict import score
from gmoe_ext.predict.__main__ import main
from gmoe_ext.runtime import PackedStudent
from tests.full_disk import no_file_beyond

COLUMNS, NODES = 6, 50


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """Pack an RbM student with six features, four position columns and five named classes."""
    model = models.build("rbm", in_dim=10, hidden_dim=20, out_dim=5, num_layers=2, num_experts=3, k=2).eval()
    names = ["plain", "with, comma", 'a "quote"', "\u00e9", ""]
    return pack(model, tmp_path / "s.safetensors", positions=torch.randn(NODES, 4), class_names=names)


@pytest.fixture
def rows() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.standard_normal((700, COLUMNS), np.float32), generator.integers(-1, NODES, 700)


def write_npz(path: Path, x: np.ndarray, nodes: np.ndarray) -> Path:
    np.savez_compressed(path.with_suffix(".npz"), x=x, nodes=nodes)
    return path.with_suffix(".npz")


def write_csv(path: Path, x: np.ndarray, nodes: np.ndarray) -> Path:
    names = [*(f"f{i}" for i in range(3)), "node", *(f"f{i}" for i in range(3, COLUMNS))]
    cells = [[*(f"{value:.9g}" for value in row)] for row in x]
    lines = [",".join([*row[:3], str(node), *row[3:]]) for row, node in zip(cells, nodes, strict=True)]
    path.with_suffix(".csv").write_text("\n".join([",".join(names), *lines]) + "\n\n")
    return path.with_suffix(".csv")


def write_parquet(path: Path, x: np.ndarray, nodes: np.ndarray) -> Path:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"node": nodes, **{f"f{i}": x[:, i] for i in range(COLUMNS)}})
    parquet.write_table(table, path.with_suffix(".parquet"), row_group_size=90)
    return path.with_suffix(".parquet")


def write_lists(path: Path, x: np.ndarray, nodes: np.ndarray) -> Path:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"x": [r.tolist() for r in x], "nodes": nodes})
    parquet.write_table(table, path.with_suffix(".parquet"), row_group_size=90)
    return path.with_suffix(".parquet")


WRITERS = [write_npz, write_csv, write_parquet, write_lists]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Split every file into many chunks of few rows."""
    for module in ("rows", "csv_rows", "parquet"):
        monkeypatch.setattr(f"gmoe_ext.predict.{module}.rows_at_once", lambda columns: 64)


@pytest.mark.parametrize("write", WRITERS)
def test_every_kind_of_input_gets_the_students_answers(student: Path, rows, tmp_path: Path, write: Callable) -> None:
    expected = PackedStudent.load(student).predict(*rows)
    done = score(student, write(tmp_path / "rows", *rows), tmp_path / "out.npy")
    assert (done.rows, done.resumed_at, done.bad_rows, done.bad_rows_path) == (700, 0, 0, None)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)
    assert {path.name for path in tmp_path.glob("out*")} == {"out.npy"}


def test_rows_with_their_positions_need_no_nodes(student: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((150, 10))
    expected = PackedStudent.load(student).predict(x)
    np.save(tmp_path / "x.npy", x)
    np.savetxt(tmp_path / "x.csv", x, delimiter=", ", fmt="%.17g")
    for name in ("x.npy", "x.csv"):
        score(student, tmp_path / name, tmp_path / "out.npy")
        np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)


def test_a_file_may_have_one_row_or_none(student: Path, tmp_path: Path) -> None:
    for x, count in ((np.ones(10), 1), (np.ones((1, 10)), 1), (np.ones((0, 10)), 0)):
        np.save(tmp_path / "x.npy", x)
        assert score(student, tmp_path / "x.npy", tmp_path / "out.csv").rows == count
        assert len((tmp_path / "out.csv").read_text().splitlines()) == 1 + count


def test_answers_hold_classes_probabilities_and_names(student: Path, rows, tmp_path: Path) -> None:
    packed, given = PackedStudent.load(student), write_npz(tmp_path / "rows", *rows)
    proba, classes = packed.top_classes(rows[0], nodes=rows[1])
    score(student, given, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [int(line["row"]) for line in lines] == list(range(700))
    assert [int(line["class"]) for line in lines] == classes[:, 0].tolist()
    assert [line["name"] for line in lines] == [packed.classes[c] for c in classes[:, 0]]
    np.testing.assert_allclose([float(line["probability"]) for line in lines], proba[:, 0], atol=1e-6)

    parquet = pytest.importorskip("pyarrow.parquet")
    score(student, given, tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["row", "class", "probability", "name"]
    assert table["class"].to_pylist() == classes[:, 0].tolist() and table["row"].to_pylist() == list(range(700))
    assert table["name"].to_pylist() == [line["name"] for line in lines]
    np.testing.assert_allclose(table["probability"].to_numpy(), proba[:, 0], rtol=1e-5)


@pytest.mark.parametrize("write", WRITERS)
def test_bad_rows_are_listed_and_keep_their_place(student: Path, rows, tmp_path: Path, write: Callable) -> None:
    x, nodes = rows
    x[3, 2], x[100, 0], nodes[69], nodes[699] = np.nan, np.inf, NODES, -2
    done = score(student, write(tmp_path / "rows", x, nodes), tmp_path / "out.npy")
    assert done.bad_rows == 4 and done.bad_rows_path == tmp_path / "out.npy.bad_rows.csv"
    assert done.bad_rows_path.read_text().splitlines() == [
        "row,problem",
        "3,feature 2 is nan",
        "69,node 50 is outside the student's table of 50",
        "100,feature 0 is inf",
        "699,node -2 is outside the student's table of 50",
    ]
    logits, bad = np.load(tmp_path / "out.npy"), [3, 69, 100, 699]
    good = np.delete(np.arange(700), bad)
    assert np.isnan(logits[bad]).all()
    np.testing.assert_array_equal(logits[good], PackedStudent.load(student).predict(x[good], nodes[good]))

    score(student, write(tmp_path / "rows", x, nodes), tmp_path / "out.csv")
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert len(lines) == 701 and [lines[1 + row] for row in bad] == [f"{row},,," for row in bad]
    parquet = pytest.importorskip("pyarrow.parquet")
    score(student, write(tmp_path / "rows", x, nodes), tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["row"] for row in table if row["class"] is None] == bad
    assert all(table[row]["probability"] is None and table[row]["name"] is None for row in bad)


def test_bad_cells_of_a_csv_file_are_listed(student: Path, tmp_path: Path) -> None:
    good = ",".join("1" * 10)
    lines = [
        good,
        "",
        "1,2,3",
        good.replace("1", "x", 1),
        "1" * 60 + good[1:],
        "1," + good[3:],
        "1_0" + good[1:],
        good,
    ]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n\n")
    done = score(student, tmp_path / "rows.csv", tmp_path / "out.csv")
    assert done.rows == 8
    assert (tmp_path / "out.csv.bad_rows.csv").read_text().splitlines()[1:] == [
        '1,"expected 10 cells, got an empty line"',
        '2,"expected 10 cells, got 3"',
        "3,cell 0 is 'x'",
        "4,feature 0 is inf",
        "5,cell 1 is ''",
        "6,cell 0 is '1_0'",
    ]


def test_nulls_and_lists_of_another_length_are_listed(student: Path, tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    lists = [[1.0] * 10, None, [1.0] * 3, [1.0] * 4 + [None] + [1.0] * 5, [1.0] * 10]
    parquet.write_table(pyarrow.table({"x": lists}), tmp_path / "lists.parquet")
    assert score(student, tmp_path / "lists.parquet", tmp_path / "out.csv").bad_rows == 3
    assert (tmp_path / "out.csv.bad_rows.csv").read_text().splitlines()[1:] == [
        "1,the list is null",
        '2,"expected a list of 10, got 3"',
        "3,feature 4 is nan",
    ]
    columns = {f"c{i}": [1, None, 3] if i == 7 else [True, False, True] for i in range(10)}
    parquet.write_table(pyarrow.table(columns), tmp_path / "columns.parquet")
    score(student, tmp_path / "columns.parquet", tmp_path / "out.csv")
    assert (tmp_path / "out.csv.bad_rows.csv").read_text().splitlines()[1:] == ["1,column 'c7' is null"]


class Killed(Exception):
    pass


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("suffix", [".csv", ".npy", ".parquet"])
@pytest.mark.parametrize("chunks", [1, 4])
def test_a_killed_run_continues_to_the_same_file(
    student: Path, rows, tmp_path: Path, write: Callable, suffix: str, chunks: int
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    x, nodes = rows
    x[[5, 130, 650], 1] = np.nan
    given, whole, output = write(tmp_path / "rows", x, nodes), tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    score(student, given, whole)
    calls = []

    def kill(done: int, resumed_at: int, total: int | None) -> None:
        calls.append(done)
        if len(calls) == chunks:
            raise Killed

    with pytest.raises(Killed):
        score(student, given, output, on_rows=kill)
    assert not output.exists()
    partial = tmp_path / f"out{suffix}.partial"
    with partial.open("ab") as file:  # half a record, and a problem of a row that was not finished
        file.write(b"half")
    with (tmp_path / f"out{suffix}.partial.bad_rows").open("a") as file:
        file.write(f"{calls[-1] + 1}\tof an unfinished row\n{calls[-1] + 2}\tcut")
    done = score(student, given, output)
    assert done.resumed_at == calls[-1] and done.rows == 700 and done.bad_rows == 3
    assert output.read_bytes() == whole.read_bytes()
    assert Path(f"{output}.bad_rows.csv").read_bytes() == Path(f"{whole}.bad_rows.csv").read_bytes()
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize("place", ["journal's head", "journal", "output", "last move"])
def test_a_full_disk_is_one_sentence_and_the_run_continues(
    student: Path, rows, tmp_path: Path, monkeypatch, capsys, place: str
) -> None:
    given, whole, output = write_npz(tmp_path / "rows", *rows), tmp_path / "whole.npy", tmp_path / "out.npy"
    score(student, given, whole)
    output.write_text("an earlier output")
    command = ["--student", str(student), "--input", str(given), "--output", str(output)]
    sizes = {"journal's head": 50, "journal": 5000, "output": 50_000}
    with monkeypatch.context() as patch:
        if place == "output":  # the journal is whole by then
            patch.setattr(sys.modules[score.__module__], "write_npy", lambda file, *_: file.write(bytes(100_000)))
        if place == "last move":
            move = os.replace

            def full(source: Path, target: Path) -> None:
                if Path(target) == output:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                move(source, target)

            patch.setattr(os, "replace", full)
        with no_file_beyond(sizes.get(place, 1 << 30)):
            assert main(command) == 3
    told = capsys.readouterr().err.splitlines()[-2:]
    assert told[0].startswith(f"error: {output}") and told[0].endswith(("File too large", "No space left on device"))
    assert told[1].startswith("  fix: make space")
    assert output.read_text() == "an earlier output" and not list(tmp_path.glob(".*.tmp"))
    assert main(command) == 0
    assert output.read_bytes() == whole.read_bytes() and not list(tmp_path.glob("*.partial*"))


def test_another_input_or_student_starts_over(student: Path, rows, tmp_path: Path) -> None:
    def kill(*_: object) -> None:
        raise Killed

    def unfinished() -> Path:
        given = write_npz(tmp_path / "rows", *rows)
        with pytest.raises(Killed):
            score(student, given, tmp_path / "out.csv", on_rows=kill, resume=False)
        return given

    given = unfinished()
    assert score(student, given, tmp_path / "out.csv", resume=False).resumed_at == 0
    given = unfinished()
    os.utime(given, ns=(1, 1))
    assert score(student, given, tmp_path / "out.csv").resumed_at == 0
    given = unfinished()
    pack(models.build("mlp", in_dim=10, hidden_dim=8, out_dim=5).eval(), student, positions=torch.randn(NODES, 4))
    assert score(student, given, tmp_path / "out.csv").resumed_at == 0


def test_two_runs_cannot_write_the_same_output(student: Path, rows, tmp_path: Path) -> None:
    given = write_npz(tmp_path / "rows", *rows)

    def again(*_: object) -> None:
        score(student, given, tmp_path / "out.csv")

    with pytest.raises(DataError, match="another run is answering into this output"):
        score(student, given, tmp_path / "out.csv", on_rows=again)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_continues(student: Path, tmp_path: Path, signum: int) -> None:
    given, output = tmp_path / "x.npy", tmp_path / "out.npy"
    np.save(given, np.random.default_rng(0).standard_normal((400_000, 10), np.float32))
    command = [sys.executable, "-m", "gmoe_ext.predict", "--student", str(student), "--input", str(given)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([*command, "--output", str(output)], env=environment, stderr=subprocess.PIPE)
    partial, half_way = tmp_path / "out.npy.partial", 400_000 * 20 // 4
    while process.poll() is None and not (partial.exists() and partial.stat().st_size > half_way):
        time.sleep(0.001)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("the run ended before the signal came")
    assert process.returncode == (143 if signum == signal.SIGTERM else -signum) and not output.exists()
    assert (b"repeat the command to continue" in errors) == (signum == signal.SIGTERM)
    done = subprocess.run(
        [*command, "--output", str(output)], env=environment, capture_output=True, text=True, check=True
    )
    assert "in an earlier run" in done.stdout
    np.testing.assert_array_equal(np.load(output), PackedStudent.load(student).predict(np.load(given)))


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet", ".csv"])
def test_memory_does_not_grow_with_the_rows(student: Path, tmp_path: Path, suffix: str) -> None:
    count = 40_000 if suffix == ".csv" else 1_500_000
    x = np.ones((count, 10), np.float32)
    given = tmp_path / f"x{suffix}"
    if suffix == ".npy":
        np.save(given, x)
    elif suffix == ".npz":
        np.savez(given, x=x)
    elif suffix == ".csv":
        np.savetxt(given, x, delimiter=",", fmt="%.1f")
    else:
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({f"f{i}": np.random.default_rng(i).random(count) for i in range(10)}), given)
    program = (
        "import resource, sys; from gmoe_ext import extras; from gmoe_ext.predict import score\n"
        "if sys.argv[2].endswith('.parquet'): extras.load('pyarrow.parquet')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "score(*sys.argv[1:4]); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(student), str(given), str(tmp_path / "out.npy")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(run.stdout) * 1024 < 64 << 20, f"{int(run.stdout) // 1024} MiB for {given.stat().st_size >> 20} MiB"


def test_files_that_do_not_fit_are_refused(student: Path, tmp_path: Path) -> None:
    pickled = np.array([{}], object)
    np.save(tmp_path / "pickled.npy", pickled, allow_pickle=True)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(np.ones((3, 10))))
    np.save(tmp_path / "narrow.npy", np.ones((3, 7)))
    np.save(tmp_path / "features.npy", np.ones((3, COLUMNS)))
    np.savez(tmp_path / "named.npz", y=np.ones(3))
    np.savez(tmp_path / "nodes.npz", x=np.ones((3, COLUMNS)), nodes=np.ones(2, int))
    np.save(tmp_path / "cut.npy", np.ones((3, 10)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-1])
    for name, text in (
        ("pickled.npy", "expected 'x' of real numbers, got object"),
        ("fortran.npy", "Fortran order"),
        ("narrow.npy", r"expected 'x' of shape \[N, 10\], got \[3, 7\]"),
        ("features.npy", "this student needs positions"),
        ("named.npz", "expected an array 'x', got y.npy"),
        ("nodes.npz", r"expected 'nodes' of 3 integers, got int64 of shape \[2\]"),
        ("cut.npy", r"array 'x' of shape \[3, 10\] takes 240 bytes, the file has 239"),
        ("none.npy", "no such file"),
        ("rows.txt", r"expected a file named \*.npy"),
    ):
        with pytest.raises(DataError, match=text):
            score(student, tmp_path / name, tmp_path / "out.csv")
    with pytest.raises(ConfigError, match=r"expected a file named \*.csv"):
        score(student, tmp_path / "narrow.npy", tmp_path / "out.txt")


def test_the_command_prints_or_writes(student: Path, rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows[0][1, 1] = np.nan
    given = write_npz(tmp_path / "rows", *rows)
    command = ["--student", str(student), "--input", str(given)]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        "warning    row 1 has no answer: feature 1 is nan",
        "warning    1 rows have no answer",
    ]
    assert main([*command, "--output", str(tmp_path / "out.csv"), "--threads", "1"]) == 0
    assert (tmp_path / "out.csv").read_text() == printed.out
    written = capsys.readouterr()
    assert "(700 rows, " in written.out and "1 rows have no answer: " in written.err
    assert "predict    rows 700/700  " in written.err
    assert main([*command, "--output", str(tmp_path / "out.txt")]) == 2
    assert main([*command, "--output", str(tmp_path / "out.csv"), "--threads", "0"]) == 2


def test_a_missing_pyarrow_is_an_error_that_names_the_extra(
    student: Path, rows, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    given = write_npz(tmp_path / "rows", *rows)
    assert main(["--student", str(student), "--input", str(given), "--output", str(tmp_path / "o.parquet")]) == 2
    assert "pip install 'gmoe_ext[predict]'" in capsys.readouterr().err
