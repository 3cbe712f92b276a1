"""Files: the same data in another order or another form is the same data, and answers do not depend on the start."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gmoe_ext import data, models
from gmoe_ext.data import splits
from gmoe_ext.data.arrays import read_csv
from gmoe_ext.data.molecules import MoleculeData
from gmoe_ext.data.splits import NONE
from gmoe_ext.export import pack
from gmoe_ext.graph import Graph
from gmoe_ext.predict.score import answer
from gmoe_ext.runtime import PackedStudent
from tests.data.make import molecule_arrays, write_csv
from tests.graphs import dense, edge_lists

SEEDS = st.integers(0, 2**31 - 1)
COLUMNS, POSITIONS, NODES, ROWS = 3, 2, 8, 23


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # thousands of small files
    with tempfile.TemporaryDirectory(dir=memory) as path:
        yield Path(path)


def assert_same_graph(got: Graph, expected: Graph) -> None:
    for name in ("offsets", "columns", "edge_type"):
        one, other = getattr(got, name), getattr(expected, name)
        assert (one is None and other is None) or torch.equal(one, other), name


def given_in_another_order(edges: np.ndarray, seed: int) -> np.ndarray:
    """The same undirected edges: shuffled, some turned round, some given twice."""
    random = np.random.default_rng(seed)
    edges = np.concatenate([edges, edges[:, : random.integers(edges.shape[1] + 1)]], 1)
    edges = edges[:, random.permutation(edges.shape[1])]
    turned = random.random(edges.shape[1]) < 0.5
    return np.where(turned, edges[::-1], edges)


def write_nodes(path: Path, edges: np.ndarray, x: np.ndarray, sparse: bool = False) -> None:
    rows, columns = np.nonzero(x)
    dense = {"x": x}
    csr = {
        "x_indptr": np.searchsorted(rows, np.arange(len(x) + 1)), "x_indices": columns, "x_data": x[rows, columns],
        "x_shape": np.array(x.shape),
    }  # fmt: skip
    ids = np.arange(len(x))
    split = {"train_idx": ids[0::3], "val_idx": ids[1::3], "test_idx": ids[2::3]}
    np.savez(path, num_nodes=len(x), edge_index=edges, y=ids % 2, **split, **(csr if sparse else dense))


@given(drawn=edge_lists(), seed=SEEDS)
def test_any_order_of_a_files_edges_gives_the_same_graph(folder: Path, drawn: tuple, seed: int) -> None:
    edges, num_nodes = drawn[0].numpy(), max(drawn[1], 3)
    x = np.random.default_rng(seed).standard_normal((num_nodes, COLUMNS)).astype(np.float32)
    write_nodes(folder / "one.npz", edges, x)
    write_nodes(folder / "other.npz", given_in_another_order(edges, seed), x, sparse=True)
    one, other = data.load("one", folder), data.load("other", folder)
    assert_same_graph(other.graph, one.graph)
    assert torch.equal(other.x, one.x) and torch.equal(other.y, one.y) and torch.equal(other.test_idx, one.test_idx)
    pairs = {(int(u), int(v)) for u, v in edges.T if u != v}
    assert set(map(tuple, one.graph.edge_index().T.tolist())) == pairs | {(v, u) for u, v in pairs}


@given(SEEDS, st.integers(1, 12))
def test_any_order_of_a_molecules_bonds_gives_the_same_bonds(seed: int, num_graphs: int) -> None:
    arrays, random = molecule_arrays(num_graphs, seed=seed), np.random.default_rng(seed)
    molecule = np.repeat(np.arange(num_graphs), arrays["num_bonds"])
    order = np.lexsort((random.random(len(molecule)), molecule))
    turned = random.random(len(order)) < 0.5
    bonds = arrays["bond_index"][:, order]
    changed = {"bond_index": np.where(turned, bonds[::-1], bonds), "bond_feat": arrays["bond_feat"][order]}
    one, other = (MoleculeData.from_arrays("d", **{**arrays, **part}, split=NONE) for part in ({}, changed))
    listed = [
        sorted(zip(*kept.graph.edge_index().tolist(), kept.graph.edge_type.tolist(), strict=True))
        for kept in (one, other)
    ]
    assert listed[0] == listed[1]
    assert torch.equal(one.batch([0], two_hop=True).two_hop.columns, other.batch([0], two_hop=True).two_hop.columns)


@given(seed=SEEDS, rows=st.integers(0, 9), columns=st.integers(1, 4), whole=st.booleans())
def test_a_table_is_read_as_it_was_written(folder: Path, seed: int, rows: int, columns: int, whole: bool) -> None:
    random = np.random.default_rng(seed)
    table = random.integers(-(2**30), 2**30, (rows, columns)) if whole else random.normal(size=(rows, columns))
    read = read_csv(write_csv(folder, "table", table) if rows else _empty(folder), "integer" if whole else "real")
    assert read.dtype == (np.int64 if whole else np.float32)
    if rows:
        np.testing.assert_allclose(read, table, rtol=0 if whole else 1e-6)


def _empty(folder: Path) -> Path:
    import gzip

    (folder / "empty.csv.gz").write_bytes(gzip.compress(b""))
    return folder / "empty.csv.gz"


@given(SEEDS, st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_a_drawn_split_takes_as_many_of_every_class(seed: int, classes: int, train: int, val: int) -> None:
    y = torch.randint(classes, (30 * classes,), generator=torch.Generator().manual_seed(seed))
    y[: classes * (train + val)] = torch.arange(classes).repeat(train + val)
    drawn = splits.per_class(y, train, val, seed)
    for ids, wanted in ((drawn.train_idx, train), (drawn.val_idx, val)):
        assert torch.bincount(y[ids], minlength=classes).tolist() == [wanted] * classes
    assert torch.cat(drawn[:3]).sort().values.tolist() == list(range(len(y)))
    assert torch.equal(splits.per_class(y, train, val, seed).test_idx, drawn.test_idx)


@given(SEEDS, st.integers(10, 200))
def test_a_random_split_covers_everything_once(seed: int, size: int) -> None:
    drawn = splits.random(size, seed)
    assert torch.cat(drawn[:3]).sort().values.tolist() == list(range(size))
    assert all(torch.equal(part, part.sort().values) for part in drawn[:3])


@given(drawn=edge_lists(), seed=SEEDS)
def test_nodes_that_arrive_later_leave_the_induced_graph(folder: Path, drawn: tuple, seed: int) -> None:
    num_nodes = max(drawn[1], 6)
    write_nodes(folder / "whole.npz", drawn[0].numpy(), np.ones((num_nodes, COLUMNS), np.float32))
    whole = data.load("whole", folder)
    view = whole.inductive(seed, 0.5)
    seen = torch.ones(num_nodes, dtype=torch.bool)
    seen[view.heldout] = False
    assert view.observed_nodes.tolist() == seen.nonzero().flatten().tolist()
    assert set(view.heldout.tolist()) <= set(whole.test_idx.tolist())
    assert torch.equal(dense(view.observed.graph), dense(whole.graph)[seen][:, seen])
    assert torch.equal(view.observed_nodes[view.observed.train_idx], whole.train_idx)


@pytest.fixture(scope="module")
def packed(folder: Path) -> PackedStudent:
    torch.manual_seed(0)
    options = dict(in_dim=COLUMNS + POSITIONS, hidden_dim=7, out_dim=3, num_layers=2, num_experts=3, k=2)
    model = models.build("rbm", **options).eval()
    return PackedStudent.load(pack(model, folder / "s.safetensors", positions=torch.randn(NODES, POSITIONS)))


@pytest.fixture(scope="module")
def tables(folder: Path) -> dict[str, Path]:
    """One table of rows in every form, some rows bad: NaN, a node that is not known."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    random = np.random.default_rng(0)
    x, nodes = random.standard_normal((ROWS, COLUMNS), np.float32), random.integers(-1, NODES, ROWS)
    x[4, 1], x[17, 0], nodes[11] = np.nan, np.inf, NODES
    np.savez(folder / "rows.npz", x=x, nodes=nodes)
    np.save(folder / "rows.npy", np.concatenate([x, random.standard_normal((ROWS, POSITIONS), np.float32)], 1))
    names = [f"f{i}" for i in range(COLUMNS)]
    lines = [",".join([*(f"{value:.9g}" for value in row), str(node)]) for row, node in zip(x, nodes, strict=True)]
    (folder / "rows.csv").write_text("\n".join([",".join([*names, "node"]), *lines]) + "\n")
    table = {**dict(zip(names, x.T, strict=True)), "node": nodes}
    parquet.write_table(pyarrow.table(table), folder / "rows.parquet", row_group_size=5)
    parquet.write_table(pyarrow.table({"x": x.tolist(), "node": nodes}), folder / "lists.parquet", row_group_size=9)
    return {name: folder / name for name in ("rows.npz", "rows.npy", "rows.csv", "rows.parquet", "lists.parquet")}


@pytest.mark.parametrize("form", ["rows.npz", "rows.npy", "rows.csv", "rows.parquet", "lists.parquet"])
@given(begin=st.integers(0, ROWS), at_once=st.integers(1, ROWS), threads=st.integers(1, 2))
def test_any_start_row_gives_the_same_answers(
    packed: PackedStudent, tables: dict[str, Path], form: str, begin: int, at_once: int, threads: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for module in ("rows", "csv_rows", "parquet"):
            patch.setattr(f"gmoe_ext.predict.{module}.rows_at_once", lambda columns: at_once)
        packed.num_threads = threads
        parts = list(answer(packed, tables[form], begin))
    whole = whole_answer(packed, tables[form])
    assert [part.begin for part in parts] == list(np.cumsum([begin, *(len(part.logits) for part in parts)])[:-1])
    logits = np.concatenate([np.zeros((0, packed.num_outputs), np.float32), *(part.logits for part in parts)])
    np.testing.assert_array_equal(logits, whole.logits[begin:])
    problems = {row: text for part in parts for row, text in part.problems.items()}
    assert problems == {row: text for row, text in whole.problems.items() if row >= begin}


def whole_answer(packed: PackedStudent, path: Path):
    (whole,) = answer(packed, path)
    assert len(whole.logits) == ROWS and len(whole.problems) == (2 if path.suffix == ".npy" else 3)
    return whole


@given(seed=SEEDS, rows=st.integers(1, 40), cut=st.integers(0, 40), threads=st.integers(1, 2))
def test_an_answer_depends_on_its_row_alone(
    packed: PackedStudent, seed: int, rows: int, cut: int, threads: int
) -> None:
    x = np.random.default_rng(seed).standard_normal((rows, COLUMNS + POSITIONS), np.float32)
    packed.num_threads = threads
    logits = packed.predict(x)
    parts = [part for part in (x[:cut], x[cut:]) if len(part)]
    np.testing.assert_array_equal(np.concatenate([packed.predict(part) for part in parts]), logits)
    np.testing.assert_array_equal(packed.predict(x[::-1])[::-1], logits)
    gate, index = packed.route(x)
    np.testing.assert_allclose(gate.sum(1), 1, rtol=1e-5)
    assert (np.diff(np.sort(index, 1), axis=1) > 0).all()
    np.testing.assert_allclose(packed.predict_proba(x).sum(1), 1, rtol=1e-5)
