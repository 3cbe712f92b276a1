"""Promises of fetching, converting and the command line; every source is a file made by the test."""

from __future__ import annotations

import collections
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gmoe_ext import data
from gmoe_ext.data import sources
from gmoe_ext.data.__main__ import main
from gmoe_ext.data.arrays import sha256
from gmoe_ext.errors import DataError
from tests.data.make import Trap, molecule_arrays, node_arrays, write_npz, write_ogb_molecules


def write_benchmark_file(path: Path) -> None:
    """The layout of shchur/gnn-benchmark: a triangle with a tail, a self loop, and a pair apart."""
    dense = np.zeros((6, 6))
    for u, v in ((5, 1), (1, 2), (2, 1), (2, 5), (5, 3), (1, 1), (0, 4)):
        dense[u, v] = 2.0
    rows, columns = np.nonzero(dense)
    features = np.arange(12.0).reshape(6, 2)
    feature_rows, feature_columns = np.nonzero(features)
    np.savez(
        path,
        adj_data=dense[rows, columns],
        adj_indices=columns,
        adj_indptr=np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=6))]),
        adj_shape=np.array([6, 6]),
        attr_data=features[feature_rows, feature_columns],
        attr_indices=feature_columns,
        attr_indptr=np.concatenate([[0], np.cumsum(np.bincount(feature_rows, minlength=6))]),
        attr_shape=np.array([6, 2]),
        labels=np.array([0, 1, 0, 1, 0, 1]),
        node_names=np.array(["a", None] * 3, dtype=object),
    )


def test_a_benchmark_graph_keeps_its_largest_component(tmp_path):
    write_benchmark_file(tmp_path / "raw.npz")
    arrays = sources.gnn_benchmark([tmp_path / "raw.npz"])
    assert arrays["orig_node_index"].tolist() == [1, 2, 3, 5]
    assert arrays["edge_index"].T.tolist() == [[0, 1], [0, 3], [1, 3], [2, 3]]
    write_npz(tmp_path, "small", arrays | {"train_idx": [0], "val_idx": [1], "test_idx": [2, 3]})
    assert data.load("small", tmp_path).x.tolist() == [[2, 3], [4, 5], [6, 7], [10, 11]]


def fake_csr(dense: np.ndarray) -> object:
    """Make an object that is pickled as Python 2's scipy.sparse.csr.csr_matrix was."""
    rows, columns = np.nonzero(dense)
    matrix = sys.modules["scipy.sparse.csr"].csr_matrix()
    matrix._shape, matrix.data, matrix.indices = dense.shape, dense[rows, columns], columns
    matrix.indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(dense)))])
    return matrix


def write_planetoid(folder: Path, monkeypatch) -> np.ndarray:
    """ind.tiny.*: 510 nodes before the test range, test nodes 510, 512, 513 (511 has no label); returns features."""
    module = types.ModuleType("scipy.sparse.csr")
    module.csr_matrix = type("csr_matrix", (), {"__module__": "scipy.sparse.csr"})
    monkeypatch.setitem(sys.modules, "scipy.sparse.csr", module)
    generator = np.random.default_rng(0)
    x = generator.integers(0, 2, size=(514, 5)).astype(np.float32)
    labels = np.eye(3, dtype=np.int32)[generator.integers(3, size=514)]
    test = [512, 510, 513]
    graph = collections.defaultdict(list, {0: [1, 2, 0], 1: [0], 513: [510, 510], 510: [513], 512: [3], 3: [512]})
    held = {
        "x": fake_csr(x[:6]), "y": labels[:6], "allx": fake_csr(x[:510]), "ally": labels[:510],
        "tx": fake_csr(x[test]), "ty": labels[test], "graph": graph,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for part, value in held.items():
        (folder / f"ind.tiny.{part}").write_bytes(pickle.dumps(value, protocol=3))
    (folder / "ind.tiny.test.index").write_text("\n".join(map(str, test)) + "\n")
    x[511] = 0
    return x


def test_planetoid_files_become_one_data_set(tmp_path, monkeypatch):
    x = write_planetoid(tmp_path, monkeypatch)
    arrays = sources.planetoid(sorted(tmp_path.glob("ind.tiny.*")))
    assert arrays["edge_index"].T.tolist() == [[0, 1], [0, 2], [3, 512], [510, 513]]
    assert arrays["unlabelled_nodes"].tolist() == [511] and arrays["test_idx"].tolist() == [510, 512, 513]
    write_npz(tmp_path, "tiny", arrays)
    tiny = data.load("tiny", tmp_path)
    assert tiny.x.numpy().tolist() == x.tolist() and tiny.split == "public"
    assert [len(ids) for ids in (tiny.train_idx, tiny.val_idx, tiny.test_idx)] == [6, 500, 3]


def test_code_in_a_planetoid_file_is_not_run(tmp_path, monkeypatch):
    write_planetoid(tmp_path, monkeypatch)
    for content in (pickle.dumps(Trap()), b"", pickle.dumps([1, 2])):
        (tmp_path / "ind.tiny.allx").write_bytes(content)
        with pytest.raises(DataError, match=r"ind\.tiny\.allx: (damaged, or holds more|expected a sparse matrix)"):
            sources.planetoid(sorted(tmp_path.glob("ind.tiny.*")))


@pytest.fixture
def published(tmp_path, monkeypatch) -> Path:
    """A folder standing in for the network, with one npz and one OGB archive, both known as sources."""
    web = tmp_path / "web"
    web.mkdir()
    write_benchmark_file(web / "raw.npz")
    write_ogb_molecules(web, "bbbp")
    with zipfile.ZipFile(web / "bbbp.zip", "w") as archive:
        for path in sorted((web / "bbbp").rglob("*.csv.gz")):
            archive.write(path, path.relative_to(web))
        archive.writestr("bbbp/../../escaped.txt", "x")
        archive.writestr("bbbp/RELEASE_v1.txt", "x")
    small = sources.Source(((web / "raw.npz").as_uri(),), sources.gnn_benchmark, (4, 4))
    wrong = sources.Source(((web / "raw.npz").as_uri(),), sources.gnn_benchmark, (5, 4))
    gone = sources.Source(((web / "gone.zip").as_uri(),))
    known = {"small": small, "wrong": wrong, "gone": gone, "mol": sources.Source(((web / "bbbp.zip").as_uri(),))}
    monkeypatch.setattr(sources, "SOURCES", known)
    monkeypatch.setattr("gmoe_ext.data.__main__.SOURCES", known)
    return web


def test_a_fetched_graph_can_be_loaded_and_its_checksum_is_recorded(tmp_path, published):
    root = tmp_path / "root"
    assert sources.get("small", root) == root / "small.npz"
    assert (root / "downloads" / "SHA256SUMS").read_text() == f"{sha256(published / 'raw.npz')}  raw.npz\n"
    write_npz(root, "small_split", {"train_idx": [0], "val_idx": [1], "test_idx": [2, 3]})
    assert data.load("small", root).num_nodes == 4
    assert not list(root.rglob("*.tmp"))

    (published / "raw.npz").unlink()
    assert sources.get("small", root).is_file(), "a file with the right checksum is not fetched again"


def test_a_changed_publication_is_refused(tmp_path, published):
    root = tmp_path / "root"
    sources.get("small", root)
    (root / "downloads" / "raw.npz").unlink()
    write_npz(published, "raw", node_arrays())
    with pytest.raises(DataError, match=r"SHA-256 is .*, expected .*\n  fix: .*SHA256SUMS"):
        sources.get("small", root)
    assert not (root / "downloads" / "raw.npz").exists()


def test_a_pinned_checksum_must_match(tmp_path, published, monkeypatch):
    pinned = sources.SOURCES["small"]._replace(sha256=("0" * 64,))
    monkeypatch.setitem(sources.SOURCES, "small", pinned)
    with pytest.raises(DataError, match="expected 0000"):
        sources.get("small", tmp_path / "root")


def test_wrong_counts_and_failing_fetches_are_errors(tmp_path, published):
    with pytest.raises(DataError, match=r"\(4, 4\), published are \(5, 4\)"):
        sources.get("wrong", tmp_path / "root")
    with pytest.raises(DataError, match=r"cannot fetch .*gone\.zip .*\n  fix: try again, or save it as "):
        sources.get("gone", tmp_path / "root")
    assert not list((tmp_path / "root").rglob("*.tmp"))


def test_an_ogb_archive_becomes_a_raw_folder(tmp_path, published):
    root = tmp_path / "root"
    assert sources.get("mol", root) == root / "mol"
    assert data.load("mol", root).num_graphs == 30
    assert not (tmp_path / "escaped.txt").exists() and not (root / "mol" / "RELEASE_v1.txt").exists()
    with pytest.raises(DataError, match="exists\n  fix: remove it"):
        sources.get("mol", root)


def test_a_truncated_archive_leaves_nothing_behind(tmp_path, published):
    archive = published / "bbbp.zip"
    archive.write_bytes(archive.read_bytes()[:500])
    with pytest.raises(DataError, match="truncated or damaged archive"):
        sources.get("mol", tmp_path / "root")
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["downloads"]


def test_every_source_has_a_plain_name_and_an_https_address():
    for name, source in sources.SOURCES.items():
        assert name.isidentifier() and all(url.startswith("https://") for url in source.urls)


def test_the_command_lists_describes_and_fetches(tmp_path, published, capsys):
    root = tmp_path / "root"
    root.mkdir()
    write_npz(root, "toy_graphs", molecule_arrays())
    assert main(["get", "small", "--root", str(root)]) == 0
    assert main(["get", "mol", "--root", str(root)]) == 0
    assert "next       python -m gmoe_ext.data info mol" in capsys.readouterr().out
    assert main(["list", "--root", str(root)]) == 0
    listed = capsys.readouterr().out
    for line in (
        "present    small ",
        "present    toy ",
        "present    mol ",
        "built in   communities",
        "available  gone",
    ):
        assert line in listed
    assert main(["info", "toy", "--root", str(root)]) == 0
    described = capsys.readouterr().out
    assert described.startswith("data       toy: 30 molecules") and sha256(root / "toy_graphs.npz") in described


def test_the_command_fails_with_code_three_and_a_fix(tmp_path, published, capsys):
    assert main(["info", "nothing", "--root", str(tmp_path)]) == 3
    error = capsys.readouterr().err
    assert error.startswith("error: data 'nothing' not found under") and "fix: pass --data.root" in error
    assert main(["get", "nothing", "--root", str(tmp_path)]) == 3
    assert "known: small, wrong, gone, mol" in capsys.readouterr().err
    assert main(["fly"]) == 2
    assert capsys.readouterr().err.startswith("error: command: invalid choice: 'fly'")
