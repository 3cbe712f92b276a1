"""Which column is which: headers, names, nodes and quoted cells are read right, put right or refused."""

from __future__ import annotations

import csv
import io
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from gmoe_ext import models
from gmoe_ext.errors import ConfigError, DataError
from gmoe_ext.export import pack
from gmoe_ext.predict import main, score
from gmoe_ext.predict.csv_rows import is_header
from gmoe_ext.predict.score import answer
from gmoe_ext.runtime import PackedStudent

NAMES = ["age", "income", "height", "2019"]


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)


@pytest.fixture
def student(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = models.build("mlp", in_dim=4, hidden_dim=8, out_dim=3, num_layers=2).eval()
    return pack(model, tmp_path / "s.safetensors")


@pytest.fixture
def named(tmp_path: Path, student: Path) -> Path:
    torch.manual_seed(0)
    model = models.build("mlp", in_dim=4, hidden_dim=8, out_dim=3, num_layers=2).eval()
    return pack(model, tmp_path / "named.safetensors", feature_names=NAMES)


@pytest.fixture
def tabled(tmp_path: Path) -> Path:
    model = models.build("mlp", in_dim=6, hidden_dim=8, out_dim=3, num_layers=2).eval()
    return pack(model, tmp_path / "t.safetensors", positions=torch.randn(10, 2), feature_names=NAMES)


def write_csv(path: Path, x: np.ndarray, header: str | None, cell: str = "{}") -> Path:
    lines = [",".join(cell.format(f"{value:.9g}") for value in row) for row in x]
    path.write_text("\n".join([*([] if header is None else [header]), *lines]) + "\n")
    return path


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("a,b,c,d", "1.5,2.5,3.5,4.5", True),
        ('"a","b","c, d",d', "1.5,2.5,3.5,4.5", True),
        ("a,b,,d", "1.5,2.5,3.5,4.5", True),
        ("1.5,-2.5,3.1,4.5", "1.5,2.5,3.5,4.5", False),
        ("1,1,0,0", "0,1,0,1", False),
        ("5,3,1,4", "2,9,1,4", False),
        ("NA,NA,NA,NA", "1.5,2.5,3.5,4.5", False),
        ("1.5,NA,3.1,", "1.5,2.5,3.5,4.5", False),
        ("0,1,2,3", "1.5,2.5,3.5,4.5", None),
        ("0,1,2,3", "4,4,1,0", None),
        (",0,1,2,3", "0,1.5,2.5,3.5,4.5", None),
        ("1,2", "1.5,2.5", None),
        ("0", "1.5", None),
        ("400,402,404,406", "1.5,2.5,3.5,4.5", None),
        ("0.1,0.2,0.3,0.4", "1.5,2.5,3.5,4.5", None),
        ("2019,2015,2007,2010", "1.5,2.5,3.5,4.5", None),
        ("a,b,2019,d", "1.5,2.5,3.5,4.5", None),
        ("a,b,inf,d", "1.5,2.5,3.5,4.5", None),
        ("1.5,2.5,x,4.5", "1.5,2.5,3.5,4.5", None),
    ],
)
def test_a_header_is_told_from_a_row_or_refused(first: str, second: str, expected: bool | None) -> None:
    lines = list(csv.reader([first, second]))
    if expected is None:
        with pytest.raises(DataError, match="--header yes or --header no"):
            is_header(*lines)
    else:
        assert is_header(*lines) is expected


@pytest.mark.parametrize(
    ("header", "told"), [("a,b,c,d", "auto"), (None, "auto"), ("0,1,2,3", "yes"), ("a,b,2019,d", "yes"), (None, "no")]
)
def test_with_any_header_every_row_is_answered(student: Path, x, tmp_path: Path, capsys, header, told: str) -> None:
    given, expected = write_csv(tmp_path / "r.csv", x, header), PackedStudent.load(student).predict(x).argmax(1)
    assert main(["--student", str(student), "--input", str(given), "--header", told]) == 0
    printed = capsys.readouterr()
    assert [int(line["class"]) for line in csv.DictReader(io.StringIO(printed.out))] == expected.tolist()
    decided = "the first line names the columns" if header else "the first line is a row"
    assert (decided in printed.err) == (told == "auto")
    done = score(student, given, tmp_path / "out.csv", header=told)
    assert done.rows == 20 and done.bad_rows == 0


def test_a_header_is_refused_where_nobody_can_tell(student: Path, x, tmp_path: Path, capsys) -> None:
    given = write_csv(tmp_path / "r.csv", x, "0,1,2,3")
    assert main(["--student", str(student), "--input", str(given)]) == 3
    assert "fix: pass --header yes or --header no" in capsys.readouterr().err
    np.save(tmp_path / "r.npy", x)
    with pytest.raises(ConfigError, match=r"--header yes is for .csv files"):
        score(student, tmp_path / "r.npy", tmp_path / "out.csv", header="yes")


@pytest.mark.parametrize("header", [None, '"a","b","c","d"', '"a\nb","c","d","e"'])
def test_quoted_cells_are_numbers(student: Path, x, tmp_path: Path, header: str | None) -> None:
    given = write_csv(tmp_path / "r.csv", x, header, '"{}"')
    assert score(student, given, tmp_path / "out.npy").bad_rows == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), PackedStudent.load(student).predict(x))


def test_a_quoted_line_end_does_not_move_the_rows_after_it(student: Path, x, tmp_path: Path) -> None:
    lines = write_csv(tmp_path / "r.csv", x, None).read_text().splitlines()
    lines[3] = '"not\na number",1,1,1'
    (tmp_path / "r.csv").write_text("\n".join(lines))
    done = score(student, tmp_path / "r.csv", tmp_path / "out.npy")
    assert (done.rows, done.bad_rows) == (20, 1)
    kept = np.delete(np.arange(20), 3)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy")[kept], PackedStudent.load(student).predict(x)[kept])
    (tmp_path / "r.csv").write_text("\n".join([*lines[:5], '"1,1,1,1', *lines[5:]]))
    with pytest.raises(DataError, match="a quote is not closed"):
        score(student, tmp_path / "r.csv", tmp_path / "out.npy")


def test_missing_values_are_listed_and_a_file_of_nothing_else_is_refused(student: Path, x, tmp_path: Path, capsys):
    text = write_csv(tmp_path / "r.csv", x, None).read_text()
    (tmp_path / "r.csv").write_text("NA,NA,NA,NA\n" + text)
    done = score(student, tmp_path / "r.csv", tmp_path / "out.csv")
    assert (done.rows, done.bad_rows) == (21, 1)
    (tmp_path / "r.csv").write_text("NA,NA,NA,NA\n" * 3)
    before = (tmp_path / "out.csv").read_bytes()
    command = ["--student", str(student), "--input", str(tmp_path / "r.csv")]
    assert main([*command, "--output", str(tmp_path / "out.csv")]) == 3 == main(command)
    assert "none of its 3 rows has an answer" in capsys.readouterr().err
    assert (tmp_path / "out.csv").read_bytes() == before and not list(tmp_path.glob("*.partial*"))


def written(tmp_path: Path, form: str, columns: dict[str, np.ndarray]) -> Path:
    path = tmp_path / f"r.{form}"
    if form == "csv":
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([list(columns), *([f"{v:.9g}" for v in row] for row in rows)])
    else:
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_named_columns_are_put_in_order_or_refused(named: Path, x, tmp_path: Path, form: str) -> None:
    expected, columns = PackedStudent.load(named).predict(x), dict(zip(NAMES, x.T, strict=True))
    for order in (NAMES, NAMES[::-1], ["2019", "age", "income", "height"]):
        path = written(tmp_path, form, {name: columns[name] for name in order})
        done = score(named, path, tmp_path / "out.npy", **({"header": "yes"} if form == "csv" else {}))
        np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)
        assert any("put in the student's order" in note for note in done.notes) == (order != NAMES)
    for wrong in ({**columns, "Age": x[:, 0]}, {("a" if n == "age" else n): c for n, c in columns.items()}):
        path = written(tmp_path, form, wrong)
        with pytest.raises(DataError, match=r"4 features by name; missing: .*not its features: '[aA]"):
            score(named, path, tmp_path / "out.npy", **({"header": "yes"} if form == "csv" else {}))


def test_where_names_are_missing_a_note_says_so(named: Path, student: Path, x, tmp_path: Path) -> None:
    path = written(tmp_path, "csv", dict(zip("abcd", x.T, strict=True)))
    assert any(
        "the student's file has no names of features" in n for n in score(student, path, tmp_path / "o.csv").notes
    )
    np.save(tmp_path / "r.npy", x)
    assert any(
        "the rows have no names of features" in n for n in score(named, tmp_path / "r.npy", tmp_path / "o.csv").notes
    )
    assert not score(student, tmp_path / "r.npy", tmp_path / "o.csv").notes


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_names_and_nodes_together(tabled: Path, x, tmp_path: Path, form: str) -> None:
    nodes = np.arange(20) % 11 - 1
    expected = PackedStudent.load(tabled).predict(x, nodes)
    columns = {"height": x[:, 2], "node": nodes, "2019": x[:, 3], "income": x[:, 1], "age": x[:, 0]}
    told = {"header": "yes"} if form == "csv" else {}
    score(tabled, written(tmp_path, form, columns), tmp_path / "out.npy", **told)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)
    with pytest.raises(DataError, match="expected one column of nodes, got 'node' and 'nodes'"):
        score(tabled, written(tmp_path, form, {**columns, "nodes": nodes}), tmp_path / "out.npy", **told)


def test_columns_of_one_name_are_refused(student: Path, x, tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table(list(x.T), names=list("abca")), tmp_path / "r.parquet")
    write_csv(tmp_path / "r.csv", x, "a,b,c,a")
    for form in ("csv", "parquet"):
        with pytest.raises(DataError, match="expected columns of different names, got 'a' twice"):
            score(student, tmp_path / f"r.{form}", tmp_path / "out.npy")


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_nodes_of_any_type_of_integer(tabled: Path, x, tmp_path: Path, kind: str) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    largest = int(np.iinfo(kind).max)
    nodes = [0, 9, None, largest, *range(8), *range(8)]
    table = {**dict(zip(NAMES, x.T, strict=True)), "node": pyarrow.array(nodes, getattr(pyarrow, kind)())}
    parquet.write_table(pyarrow.table(table), tmp_path / "r.parquet")
    score(tabled, tmp_path / "r.parquet", tmp_path / "out.npy")
    assert Path(tmp_path / "out.npy.bad_rows.csv").read_text().splitlines()[1:] == [
        "2,column 'node' is null",
        f"3,node {largest} is outside the student's table of 10",
    ]
    good = np.array([i for i in range(20) if i not in (2, 3)])
    expected = PackedStudent.load(tabled).predict(x[good], np.array([nodes[i] for i in good]))
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy")[good], expected)
    arrays = np.array([node or 0 for node in nodes], kind)
    np.savez(tmp_path / "r.npz", x=x, nodes=arrays, other=x)
    done = score(tabled, tmp_path / "r.npz", tmp_path / "out.npy")
    assert done.bad_rows == 1 and "arrays that are not read: other" in done.notes


def test_one_row_takes_its_node(tabled: Path, x, tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", x=x[0], nodes=np.array([7]))
    score(tabled, tmp_path / "r.npz", tmp_path / "out.npy")
    expected = PackedStudent.load(tabled).predict(x[:1], np.array([7]))
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)


def test_the_index_of_pandas_is_no_feature(student: Path, x, tmp_path: Path) -> None:
    columns = {**dict(zip("abcd", x.T, strict=True)), "__index_level_0__": np.arange(20)}
    done = score(student, written(tmp_path, "parquet", columns), tmp_path / "out.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), PackedStudent.load(student).predict(x))
    assert any("__index_level_0__" in note for note in done.notes)


@pytest.mark.parametrize("begin", [0, 1, 7, 19, 20])
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_any_start_row_gives_the_same_answers(named: Path, x, tmp_path: Path, form: str, begin: int) -> None:
    x[3, 1] = np.nan
    path = written(tmp_path, form, dict(zip(NAMES[::-1], x.T[::-1], strict=True)))
    parts = list(answer(PackedStudent.load(named), path, begin, "yes" if form == "csv" else "auto"))
    logits = np.concatenate([part.logits for part in parts]) if parts else np.empty((0, 3), np.float32)
    np.testing.assert_array_equal(logits, PackedStudent.load(named).predict(x[begin:]))
    assert [row for part in parts for row in part.problems] == [3][: begin <= 3]


@pytest.mark.parametrize("way", ["same", "dotted", "symbolic", "hard", "bad_rows", "partial"])
def test_an_output_that_is_an_input_is_refused(student: Path, x, tmp_path: Path, way: str) -> None:
    rows, output = tmp_path / "rows.npy", tmp_path / "rows.npy"
    np.save(rows, x)
    if way == "dotted":
        output = tmp_path / "." / "rows.npy"
    elif way == "symbolic":
        (output := tmp_path / "link.npy").symlink_to(rows)
    elif way == "hard":
        os.link(rows, output := tmp_path / "hard.npy")
    elif way in ("bad_rows", "partial"):  # files that stand beside an output
        output, beside = tmp_path / "out.npy", f"out.npy.{way}" + (".csv" if way == "bad_rows" else "")
        write_csv(tmp_path / "r.csv", x, None)
        rows = (tmp_path / "r.csv").rename(tmp_path / (beside if way == "bad_rows" else "r2.csv"))
        if way == "partial":
            os.link(rows, tmp_path / beside)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match=r"--output .* is the input .*; name another file"):
        score(student, rows, output)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_output_that_cannot_be_written_is_refused_before_any_work(student: Path, x, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", x)
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "mine.npy.partial").write_text("my own notes")
    for name, error, text in (
        ("folder.npy", ConfigError, "expected a file, got a directory"),
        ("no/out.npy", ConfigError, "there is no directory"),
        ("mine.npy", DataError, "expected the answers of an unfinished run; move this file away"),
    ):
        with pytest.raises(error, match=text):
            score(student, tmp_path / "rows.npy", tmp_path / name)
    assert (tmp_path / "mine.npy.partial").read_text() == "my own notes"


def test_the_command_runs_in_a_thread(student: Path, x, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", x)
    command = ["--student", str(student), "--input", str(tmp_path / "rows.npy"), "--output", str(tmp_path / "o.npy")]
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(command)))
    thread.start()
    thread.join()
    assert codes == [0] and len(np.load(tmp_path / "o.npy")) == 20


@pytest.mark.parametrize("shape", ["(-2, -10)", "(2, 5)", "(4, 10)", "(1099511627776, 10)", "(2, 9999999999999999999)"])
def test_the_size_of_an_array_is_that_of_its_file(student: Path, tmp_path: Path, shape: str) -> None:
    np.save(tmp_path / "rows.npy", np.ones((2, 10)))
    raw = (tmp_path / "rows.npy").read_bytes()
    header = raw[10:128].replace(b"(2, 10)", shape.encode()).rstrip()
    (tmp_path / "rows.npy").write_bytes(raw[:10] + header.ljust(117) + b"\n" + raw[128:])
    with pytest.raises(DataError, match="the file has 160"):
        score(student, tmp_path / "rows.npy", tmp_path / "out.csv")
