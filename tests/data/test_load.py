"""Promises of load: formats, split rules, and one clear error for everything that can be wrong."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from gmoe_ext import data
from gmoe_ext.data.arrays import read_csv
from gmoe_ext.data.load import resolve_root
from gmoe_ext.errors import DataError
from tests.data.make import link_arrays, molecule_arrays, node_arrays, split_arrays, write_npz


def test_a_node_file_is_read_whole(tmp_path):
    arrays = node_arrays() | split_arrays(40, "val_idx") | {"class_names": np.array(["a", "b", "c"])}
    path = write_npz(tmp_path, "toy", arrays)
    toy = data.load("toy", tmp_path)
    dense = np.zeros((40, 6), dtype=np.float32)
    rows = np.repeat(np.arange(40), np.diff(arrays["x_indptr"]))
    dense[rows, arrays["x_indices"]] = arrays["x_data"]
    assert torch.equal(toy.x, torch.from_numpy(dense)) and toy.y.tolist() == arrays["y"].tolist()
    u, v = arrays["edge_index"]
    expected = sorted([*zip(u.tolist(), v.tolist(), strict=True), *zip(v.tolist(), u.tolist(), strict=True)])
    assert sorted(map(tuple, toy.graph.edge_index().T.tolist())) == expected
    assert (toy.num_classes, toy.class_names, toy.metric, toy.split) == (3, ("a", "b", "c"), "accuracy", "public")
    assert toy.val_idx.tolist() == split_arrays(40)["valid_idx"].tolist()
    assert toy.sha256 == {"toy.npz": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert repr(toy).startswith("NodeData(toy: 40 nodes, ")


def test_dense_features_are_read(tmp_path):
    arrays = {key: value for key, value in node_arrays().items() if not key.startswith("x_")}
    write_npz(tmp_path, "toy", arrays | {"x": np.ones((40, 2))})
    assert data.load("toy", tmp_path, train_per_class=3, val_per_class=3).x.equal(torch.ones(40, 2))


def test_a_molecule_file_is_read_whole(tmp_path):
    arrays = molecule_arrays(num_tasks=2) | split_arrays(30)
    write_npz(tmp_path, "mol_graphs", arrays)
    mol = data.load("mol", tmp_path)
    assert (mol.num_graphs, mol.num_tasks, mol.metric, mol.split) == (30, 2, "rocauc", "official")
    torch.testing.assert_close(mol.y, torch.from_numpy(arrays["y"]), equal_nan=True)
    assert mol.graph.num_edges == 2 * arrays["num_bonds"].sum()
    assert data.load("mol", tmp_path, metric="rmse").metric == "rmse"


def test_a_link_file_is_read_whole(tmp_path):
    write_npz(tmp_path, "pairs", link_arrays())
    pairs = data.load("pairs", tmp_path).to("cpu")
    assert isinstance(pairs, data.LinkData) and pairs.x is None and pairs.num_nodes == 40
    assert pairs.graph.num_edges == 160 and pairs.test_edge_neg.shape == (2, 5)
    assert repr(pairs) == "LinkData(pairs: 40 nodes, 80/10/10 edges to train/validate/test, hits@20)"


def test_the_split_is_the_files_else_one_beside_it_else_drawn(tmp_path):
    write_npz(tmp_path, "toy", node_arrays())
    drawn = data.load("toy", tmp_path, split_seed=1, train_per_class=3, val_per_class=5)
    assert drawn.split == "per_class" and len(drawn.train_idx) == 6 and len(drawn.val_idx) == 10
    assert torch.bincount(drawn.y[drawn.train_idx]).tolist() == [3, 3]
    again = data.load("toy", tmp_path, split_seed=1, train_per_class=3, val_per_class=5)
    other = data.load("toy", tmp_path, split_seed=2, train_per_class=3, val_per_class=5)
    assert torch.equal(drawn.test_idx, again.test_idx) and not torch.equal(drawn.test_idx, other.test_idx)

    path = write_npz(tmp_path, "toy_split_reconstructed", split_arrays(40))
    beside = data.load("toy", tmp_path)
    assert beside.split == "reconstructed" and set(beside.sha256) == {"toy.npz", path.name}
    assert data.load("toy", tmp_path, split="file").split == "reconstructed"
    assert data.load("toy", tmp_path, split="random").split == "random"

    write_npz(tmp_path, "toy_split_other", split_arrays(40))
    with pytest.raises(DataError, match="several splits: other, reconstructed"):
        data.load("toy", tmp_path)
    assert data.load("toy", tmp_path, split="other").split == "other"


def test_molecules_without_a_split_get_a_random_one(tmp_path):
    write_npz(tmp_path, "mol_graphs", molecule_arrays())
    mol = data.load("mol", tmp_path)
    assert mol.split == "random" and [len(mol.train_idx), len(mol.val_idx), len(mol.test_idx)] == [24, 3, 3]
    with pytest.raises(DataError, match="'per_class' is for nodes"):
        data.load("mol", tmp_path, split="per_class")


def test_unlabelled_nodes_are_drawn_into_no_part(tmp_path):
    write_npz(tmp_path, "toy", node_arrays() | {"unlabelled_nodes": np.arange(10)})
    toy = data.load("toy", tmp_path, train_per_class=5, val_per_class=5)
    parts = torch.cat([toy.train_idx, toy.val_idx, toy.test_idx])
    assert sorted(parts.tolist()) == list(range(10, 40))


def test_partial_features_are_refused_unless_asked_for(tmp_path):
    write_npz(tmp_path, "part", node_arrays() | split_arrays(40) | {"x_known_nodes": np.arange(5)})
    with pytest.raises(DataError, match=r"features of 5 of 40 nodes only(.|\n)*--data.allow_partial true"):
        data.load("part", tmp_path)
    assert data.load("part", tmp_path, allow_partial=True).num_nodes == 40


def test_features_are_row_normalized_on_request(tmp_path):
    write_npz(tmp_path, "toy", node_arrays() | split_arrays(40))
    sums = data.load("toy", tmp_path, row_normalize=True).x.sum(1)
    assert bool(((sums - 1).abs().lt(1e-6) | (sums == 0)).all())


def test_synthetic_features_are_row_normalized_on_request():
    sums = data.load("communities", row_normalize=True).x.abs().sum(1)
    torch.testing.assert_close(sums, torch.ones_like(sums))


def test_a_metric_that_does_not_fit_nodes_is_refused(tmp_path):
    write_npz(tmp_path, "toy", node_arrays() | split_arrays(40))
    assert data.load("toy", tmp_path, metric="accuracy").metric == "accuracy"
    with pytest.raises(DataError, match="is scored by 'accuracy', got metric 'rmse'"):
        data.load("toy", tmp_path, metric="rmse")


def test_the_root_is_the_argument_else_the_environment_else_data(monkeypatch):
    monkeypatch.setenv("GMOE_EXT_DATA", "elsewhere")
    assert resolve_root("here") == Path("here") and resolve_root() == Path("elsewhere")
    monkeypatch.delenv("GMOE_EXT_DATA")
    assert resolve_root() == Path("data")


def test_a_missing_data_set_says_where_it_looked_and_what_to_do(tmp_path):
    with pytest.raises(DataError) as caught:
        data.load("cora_cpf", tmp_path)
    assert str(caught.value) == (
        f"data 'cora_cpf' not found under '{tmp_path}'.\n"
        f"  looked for: {tmp_path}/cora_cpf.npz, {tmp_path}/cora_cpf_graphs.npz, {tmp_path}/cora_cpf/raw\n"
        f"  fix: pass --data.root DIR, or run `python -m gmoe_ext.data get cora_cpf --root {tmp_path}`"
    )


def test_a_missing_split_is_named(tmp_path):
    write_npz(tmp_path, "toy", node_arrays())
    for rule, file in (("file", r"toy_split\*.npz"), ("scaffold", "toy_split_scaffold.npz")):
        with pytest.raises(DataError, match=f"has no split '{rule}'\n  looked for: .*{file}"):
            data.load("toy", tmp_path, split=rule)


def changed(name: str, index, value) -> dict:
    arrays = node_arrays() | split_arrays(40)
    array = arrays[name].copy()
    if isinstance(value, float):
        array = array.astype(np.float64)
    array[index] = value
    return {name: array}


OBJECTS = np.empty(40, dtype=object)


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        (changed("edge_index", (1, 2), 40), "index out of range: 'edge_index' at position .* is 40, expected 0 <= ind"),
        (changed("edge_index", (0, 0), -1), "'edge_index' at position 0 is -1"),
        (changed("y", 3, -2), r"expected class ids 0, 1, ... \(-1 or NaN: unlabelled\) in 'y', got -2 at node 3"),
        (changed("y", 3, float("inf")), "got inf at node 3"),
        (changed("x_data", 5, np.nan), "expected finite values in 'x_data', got nan at position 5"),
        (changed("x_indices", 5, 6), "'x_indices' at position 5 is 6, expected 0 <= index < 6"),
        (changed("x_indptr", 1, 999), "'x_indptr' ascending"),
        (changed("train_idx", 0, 40), "train id at position 0 is 40, expected 0 <= id < 40"),
        (changed("train_idx", 0, 39), "id 39 is in both the train and test part"),
        (changed("train_idx", 0, 1), "id 1 is repeated in the train part"),
        ({"valid_idx": np.zeros(0, dtype=int)}, "the val part is empty"),
        ({"train_idx": np.zeros(3)}, "expected 'train_idx' of integer values, got dtype float64"),
        ({"y": np.zeros(39, dtype=int)}, r"expected 'y' of shape \[40\] or \[40, any\], got \[39\]"),
        ({"edge_index": np.zeros((3, 5), dtype=int)}, r"expected 'edge_index' of shape \[2, any\], got \[3, 5\]"),
        ({"edge_index": np.zeros((2, 5))}, "expected 'edge_index' of integer values, got dtype float64"),
        ({"num_nodes": np.int64(-3)}, "expected 0 <= 'num_nodes' < 2.31, got -3"),
        ({"x_shape": np.array([39, 6])}, r"expected 'x_shape' \[40, F\], got \[39, 6\]"),
        ({"class_names": np.array(["only"])}, "label 1 has no name"),
        ({"y": OBJECTS}, "array 'y' holds Python objects, which are not loaded"),
    ],
)
def test_a_bad_node_file_gives_its_error(tmp_path, arrays, text):
    write_npz(tmp_path, "bad", node_arrays() | split_arrays(40) | arrays)
    with pytest.raises(DataError, match=text):
        data.load("bad", tmp_path)


def test_a_missing_array_is_named(tmp_path):
    arrays = node_arrays()
    del arrays["edge_index"]
    write_npz(tmp_path, "bad", arrays)
    with pytest.raises(DataError, match="array 'edge_index' is missing, found num_nodes, x_data"):
        data.load("bad", tmp_path)


def test_a_bad_link_file_gives_its_error(tmp_path):
    write_npz(tmp_path, "bad", link_arrays() | {"test_edge_neg": np.array([[0], [40]])})
    with pytest.raises(DataError, match="'test_edge_neg' at position 1 is 40"):
        data.load("bad", tmp_path)


@pytest.mark.parametrize("kept", [0, 10, 400, -30])
def test_a_truncated_archive_is_an_error(tmp_path, kept):
    path = write_npz(tmp_path, "cut", node_arrays())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"cut\.npz: truncated or damaged archive"):
        data.load("cut", tmp_path)


def test_a_flipped_byte_is_an_error(tmp_path):
    path = write_npz(tmp_path, "flip", node_arrays())
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        data.load("flip", tmp_path)


def test_a_single_array_is_not_an_archive(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(DataError, match="damaged archive"):
        data.load("one", tmp_path)


def test_a_class_with_too_few_nodes_is_named(tmp_path):
    write_npz(tmp_path, "toy", node_arrays())
    with pytest.raises(DataError, match="class 0 has 20 nodes, expected at least 50"):
        data.load("toy", tmp_path)


def test_csv_cells(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "t.csv.gz"
        path.write_bytes(gzip.compress(text.encode()))
        return path

    nan = float("nan")
    np.testing.assert_equal(read_csv(write("1,,3\n,5,\n"), "real", missing=True), [[1, nan, 3], [nan, 5, nan]])
    np.testing.assert_equal(read_csv(write("1\n\n\n"), "real", missing=True), [[1], [nan], [nan]])
    assert read_csv(write(""), "integer").shape == (0, 0)
    for text, message in (("1,2\n3,\n", "blank cell in line 2"), ("1\n\n2\n", "line 2"), ("a\n", "expected integer")):
        with pytest.raises(DataError, match=message):
            read_csv(write(text), "integer")
    with pytest.raises(DataError, match="expected integer"):
        read_csv(write("1.5\n"), "integer")
    whole = write("1,2\n" * 500)
    whole.write_bytes(whole.read_bytes()[:-12])
    with pytest.raises(DataError, match="truncated or damaged gzip"):
        read_csv(whole, "integer")
    whole.write_bytes(b"no gzip")
    with pytest.raises(DataError, match="truncated or damaged gzip"):
        read_csv(whole, "integer")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cora_planetoid", "2,708 nodes, 5,278 edges, 1,433 features, 7 classes, 140/500/1,000 (public)"),
        ("citeseer_planetoid", "3,327 nodes, 4,552 edges, 3,703 features, 6 classes, 120/500/1,000 (public)"),
        ("cora_cpf", "2,485 nodes, 5,069 edges, 1,433 features, 7 classes, 140/210/2,135 (per_class)"),
        ("amazon_photo", "7,487 nodes, 119,043 edges, 745 features, 8 classes, 160/240/7,087 (per_class)"),
        ("molbbbp", "2,039 molecules, 24.1 atoms and 26.0 bonds each, 1 task (rocauc), 1,631/204/204 (official)"),
        ("molesol", "1,128 molecules, 13.3 atoms and 13.7 bonds each, 1 task (rmse), 902/113/113 (official)"),
        (
            "moltox21",
            "7,831 molecules, 18.6 atoms and 19.3 bonds each, 12 tasks (rocauc), 6,264/783/784 (reconstructed)",
        ),
        ("ogbl_ddi", "4,267 nodes, 1,067,911/133,489/133,489 edges to train/validate/test, hits@20"),
    ],
)
def test_real_data_has_the_published_counts(data_root, name, expected):
    if not any((data_root / f"{name}{ending}").exists() for ending in (".npz", "_graphs.npz")):
        pytest.skip(f"{name} is not in GMOE_EXT_DATA")
    assert data.load(name, data_root).summary() == expected
