"""Promises of splits: what a file or dataset says is used or refused, and never replaced without a word."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from gmoe_ext import data
from gmoe_ext.errors import ConfigError, DataError, DataWarning
from tests.data.make import link_arrays, molecule_arrays, node_arrays, split_arrays, write_npz

IDS = np.arange(40)
PARTS = {"train": IDS[:20], "val": IDS[20:30], "test": IDS[30:]}


def mask(ids: np.ndarray, size: int = 40) -> np.ndarray:
    return np.isin(np.arange(size), ids)


def load(folder, arrays, **options):
    write_npz(folder, "toy", node_arrays() | arrays)
    return data.load("toy", folder, **options)


@pytest.mark.parametrize(
    "named",
    [
        {f"{part}_mask": mask(ids) for part, ids in PARTS.items()},
        {f"{part}_mask": mask(ids).astype(np.uint8) for part, ids in PARTS.items()},
        {f"idx_{part}": ids for part, ids in PARTS.items()},
        {f"{part}_index": ids[::-1] for part, ids in PARTS.items()},
        {"train": PARTS["train"], "valid": PARTS["val"], "test": PARTS["test"]},
        {"train_ids": PARTS["train"], "validation_ids": PARTS["val"], "test_ids": PARTS["test"]},
        {
            "train_idx": PARTS["train"],
            "train_mask": mask(PARTS["train"]),
            "dev_ids": PARTS["val"],
            "test": PARTS["test"],
        },
    ],
)
def test_a_files_split_is_used_whatever_it_is_called(tmp_path, named):
    toy = load(tmp_path, named)
    assert toy.split == "public" and not toy.remarks
    for part, ids in PARTS.items():
        assert getattr(toy, f"{part}_idx").tolist() == ids.tolist()
    write_npz(tmp_path, "mol_graphs", molecule_arrays(40) | named)
    assert data.load("mol", tmp_path).test_idx.tolist() == PARTS["test"].tolist()


def test_a_column_of_several_splits_is_chosen_by_the_seed_and_named(tmp_path):
    columns = {f"{part}_mask": np.stack([mask((ids + 1) % 40), mask(ids)], 1) for part, ids in PARTS.items()}
    toy = load(tmp_path, columns, split_seed=1)
    assert toy.split == "public 2 of 2" and toy.train_idx.tolist() == PARTS["train"].tolist()
    assert load(tmp_path, columns).train_idx.tolist() == (PARTS["train"] + 1).tolist()


@pytest.mark.parametrize("kept", ["train", "val", "test", "train test", "train val"])
@pytest.mark.parametrize("form", ["{}_idx", "{}_mask"])
def test_a_partial_split_is_refused(tmp_path, kept, form):
    parts = {form.format(part): mask(PARTS[part]) if "mask" in form else PARTS[part] for part in kept.split()}
    with pytest.raises(DataError, match=rf"has {form.format(kept.split()[0])}.*, but no \w+(.|\n)*--data.split random"):
        load(tmp_path, parts)
    assert load(tmp_path, parts, split="random").split == "random"


def test_a_split_without_a_training_part_can_be_scored_but_not_trained_on(tmp_path):
    with pytest.warns(DataWarning, match="has val_idx and test_idx, but no training part"):
        toy = load(tmp_path, {"val_idx": PARTS["val"], "test_idx": PARTS["test"]})
    assert len(toy.train_idx) == 0 and toy.test_idx.tolist() == PARTS["test"].tolist()
    assert "no training part" in repr(toy)
    with pytest.raises(DataError, match="the train part has no label at all"):
        parts = {part: getattr(toy, f"{part}_idx") for part in PARTS}
        data.metrics.check_parts("toy", toy.metric, toy.y, parts)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"train_mask": mask(IDS[:19])}, "the train part is given twice, and differently: train_idx, train_mask"),
        ({"idx_test": IDS[29:]}, "the test part is given twice, and differently"),
        ({"train_idx": mask(PARTS["train"])}, "expected ids in 'train_idx', got a boolean mask\n  fix: name it"),
        ({"train_idx": IDS[:20, None]}, r"expected 'train_idx' of shape \[any\], got \[20, 1\]"),
        ({"train_idx": IDS[:20] * 1.0}, "expected 'train_idx' of integer values, got dtype float64"),
        ({"train_idx": IDS[:25]}, "id 20 is in both the train and val part"),
        ({"val_mask": mask(PARTS["val"])[:39]}, r"'val_mask' of shape \[40\] or \[40, any\], got \[39\]"),
        ({"val_mask": mask(PARTS["val"]) * 0.5}, "expected 'val_mask' of boolean values"),
        ({"val_mask": mask(PARTS["val"]) * 2}, "expected 'val_mask' of boolean values"),
        ({"val_mask": np.zeros((40, 0), bool)}, r"\[40, splits\], got \[40, 0\]"),
    ],
)
def test_contradictory_and_bad_splits_are_refused(tmp_path, changed, text):
    with pytest.raises(DataError, match=text):
        load(tmp_path, {f"{part}_idx": ids for part, ids in PARTS.items()} | changed)


def test_what_is_not_read_is_named(tmp_path):
    more = {"edge_weight": np.ones(5), "node_year": IDS, "name": np.array("cora")}
    with pytest.warns(DataWarning, match="data 'toy': not read: edge_weight, name, node_year"):
        toy = load(tmp_path, more | split_arrays(40))
    assert toy.remarks == ("not read: edge_weight, name, node_year",) and toy.remarks[0] in toy.summary()
    write_npz(tmp_path, "mol_graphs", molecule_arrays() | {"smiles": np.array(["C"] * 30)})
    with pytest.warns(DataWarning, match="not read: smiles"):
        assert "not read: smiles" in data.load("mol", tmp_path).summary()
    write_npz(tmp_path, "pairs", link_arrays() | {"train_year": IDS})
    with pytest.warns(DataWarning, match="not read: train_year"):
        assert "not read: train_year" in data.load("pairs", tmp_path).summary()
    write_npz(tmp_path, "plain", node_arrays())
    write_npz(tmp_path, "plain_split", split_arrays(40) | {"weight": IDS})
    with pytest.warns(DataWarning, match=r"plain_split.npz: not read: weight"):
        data.load("plain", tmp_path)


def test_files_that_lose_to_another_are_named(tmp_path):
    write_npz(tmp_path, "toy", node_arrays() | split_arrays(40))
    write_npz(tmp_path, "toy_graphs", molecule_arrays())
    write_npz(tmp_path, "toy_split_other", split_arrays(40))
    with pytest.warns(DataWarning) as caught:
        toy = data.load("toy", tmp_path)
    texts = " ".join(str(warning.message) for warning in caught)
    assert "not read: toy_graphs.npz" in texts and "toy_split_other.npz (for --data.split other)" in texts
    assert toy.split == "public" and data.load("toy", tmp_path, split="other").split == "other"


def test_a_file_is_read_although_a_data_set_of_its_name_can_be_generated(tmp_path):
    for name in ("communities", "molecules"):
        write_npz(tmp_path, name, node_arrays() | split_arrays(40))
        assert data.load(name, tmp_path).num_nodes == 40


def test_a_split_beside_a_name_with_brackets_is_found(tmp_path):
    write_npz(tmp_path, "a[1]", node_arrays())
    write_npz(tmp_path, "a[1]_split", split_arrays(40))
    assert data.load("a[1]", tmp_path).split == "file"


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("communities", {"split": "random"}, "is generated with its own split, so split cannot apply"),
        ("communities", {"metric": "accuracy"}, "metric cannot apply\n  fix: drop --data.metric"),
        ("molecules", {"row_normalize": True}, "row_normalize cannot apply"),
        ("communities", {"split_seed": -1}, "split_seed: expected a number >= 0, got -1"),
        ("pairs", {"split": "random", "metric": "rocauc"}, "is of links, so split, metric cannot apply"),
        ("mol", {"row_normalize": True}, "is of molecules, so row_normalize cannot apply"),
        ("mol", {"val_per_class": 5}, "train_per_class and val_per_class do not apply to split 'random'"),
        ("toy", {"train_per_class": 5}, "do not apply to split 'public'\n  fix: .*--data.split per_class"),
        ("bare", {"train_per_class": 5, "split": "random"}, "do not apply to split 'random'"),
        ("bare", {"train_per_class": 0}, "expected train_per_class and val_per_class of at least 1, got 0 and 30"),
        ("bare", {"split_seed": -3}, "split_seed: expected a number >= 0, got -3"),
    ],
)
def test_options_that_have_no_effect_or_are_out_of_range_are_refused(tmp_path, name, options, text):
    write_npz(tmp_path, "toy", node_arrays() | split_arrays(40))
    write_npz(tmp_path, "bare", node_arrays(200))
    write_npz(tmp_path, "mol_graphs", molecule_arrays())
    write_npz(tmp_path, "pairs", link_arrays())
    with pytest.raises(ConfigError, match=text):
        data.load(name, tmp_path, **options)


def test_a_path_is_no_name(tmp_path):
    for name in ("", "a/b", str(tmp_path / "toy"), "a\0b"):
        with pytest.raises(DataError, match="expected a name, not a path"):
            data.load(name, tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        data.load("x" * 300, tmp_path)


def test_directions_that_are_dropped_are_told(tmp_path):
    edges = node_arrays()["edge_index"]
    some = np.where(np.arange(edges.shape[1]) % 2, edges, edges[::-1])
    expected = load(tmp_path, split_arrays(40)).graph
    for given, one_way in ((edges, 0), (edges[::-1], 0), (np.concatenate([edges, edges[::-1]], 1), 0), (some, 1)):
        told = pytest.warns(DataWarning, match=f"{edges.shape[1]} edges that are given in one direction")
        with told if one_way else nullcontext():
            toy = load(tmp_path, split_arrays(40) | {"edge_index": given})
        assert torch.equal(toy.graph.columns, expected.columns) and torch.equal(toy.graph.offsets, expected.offsets)
        assert bool(toy.remarks) == bool(one_way)


def test_entries_that_a_sparse_row_has_twice_are_added_up(tmp_path):
    offsets = np.array([0, 2] + [3] * 39)
    sparse = {"x_indptr": offsets, "x_indices": np.array([1, 1, 0]), "x_data": np.array([2.0, 3.0, 4.0])}
    x = load(tmp_path, split_arrays(40) | sparse | {"x_shape": np.array([40, 2])}).x
    assert x[:2].tolist() == [[0, 5], [4, 0]] and x.sum() == 9


def test_two_kinds_of_features_are_refused(tmp_path):
    with pytest.raises(DataError, match="has both 'x' and x_shape, x_data, x_indices, x_indptr"):
        load(tmp_path, {"x": np.ones((40, 2))})
