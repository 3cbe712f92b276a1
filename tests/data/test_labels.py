"""Promises of labels: what they are is never guessed, and what has no label is in no part."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from gmoe_ext import data
from gmoe_ext.errors import ConfigError, DataError, DataWarning
from tests.data.make import molecule_arrays, node_arrays, write_npz

IDS = np.arange(40)


COUNTS = {"train_per_class": 3, "val_per_class": 3}


@pytest.mark.parametrize("ids", [(1, 2, 3), (10, 1000, 2_000_000), (0, 1, 2**62), (-1, 1), (5.0, 7.0)])
def test_class_ids_are_numbered_one_after_the_other_and_remembered(tmp_path, ids):
    y = np.array(ids)[IDS % len(ids)]
    write_npz(tmp_path, "toy", node_arrays() | {"y": y})
    names = tuple(str(int(value)) for value in ids)
    with pytest.warns(DataWarning, match=f"class ids {', '.join(names)} are the outputs 0 to {len(ids) - 1}"):
        toy = data.load("toy", tmp_path, **COUNTS)
    assert (toy.num_classes, toy.class_names, toy.y.tolist()) == (len(ids), names, (IDS % len(ids)).tolist())
    assert f"class ids {names[0]}" in toy.summary()


def test_unsigned_ids_beyond_int64_are_class_ids_too(tmp_path):
    write_npz(tmp_path, "toy", node_arrays() | {"y": np.array([7, 2**64 - 1], dtype=np.uint64)[IDS % 2]})
    with pytest.warns(DataWarning):
        assert data.load("toy", tmp_path, **COUNTS).class_names == ("7", str(2**64 - 1))


def test_named_classes_keep_their_numbers(tmp_path):
    names = {"class_names": np.array(["a", "b", "c", "d"])}
    write_npz(tmp_path, "toy", node_arrays() | {"y": 3 * (IDS % 2)} | names)
    toy = data.load("toy", tmp_path, **COUNTS)
    assert toy.num_classes == 4 and toy.y.tolist() == (3 * (IDS % 2)).tolist()
    write_npz(tmp_path, "toy", node_arrays() | {"class_names": np.array(["a", "a"])})
    with pytest.raises(DataError, match="different names in 'class_names'"):
        data.load("toy", tmp_path)


@pytest.mark.parametrize("rule", ["per_class", "random", "auto"])
@pytest.mark.parametrize("how", ["-1", "NaN", "listed"])
def test_unlabelled_nodes_are_in_no_part(tmp_path, rule, how):
    unlabelled, y = IDS[::3], (IDS % 2).astype(float if how == "NaN" else int)
    y[unlabelled] = {"-1": -1, "NaN": np.nan, "listed": 0}[how]
    parts = {"train_idx": IDS[:20], "val_idx": IDS[20:30], "test_idx": IDS[30:]} if rule == "auto" else {}
    listed = {"unlabelled_nodes": unlabelled} if how == "listed" else {}
    write_npz(tmp_path, "toy", node_arrays() | {"y": y} | parts | listed)
    counts = COUNTS if rule == "per_class" else {}
    if rule == "auto":
        with pytest.warns(DataWarning, match="14 unlabelled items are left out of the split 'public'"):
            toy = data.load("toy", tmp_path)
    else:
        toy = data.load("toy", tmp_path, split=rule, **counts)
    everyone = torch.cat([toy.train_idx, toy.val_idx, toy.test_idx])
    assert sorted(everyone.tolist()) == sorted(set(IDS) - set(unlabelled))
    assert toy.num_classes == 2 and toy.y[unlabelled].tolist() == [0 if how == "listed" else -1] * len(unlabelled)


def test_a_part_of_unlabelled_nodes_is_refused(tmp_path):
    parts = {"train_idx": IDS[:20], "val_idx": IDS[20:30], "test_idx": IDS[30:]}
    write_npz(tmp_path, "toy", node_arrays() | {"y": np.where(IDS < 20, -1, IDS % 2)} | parts)
    with pytest.raises(DataError, match="no item of the train part has a label"):
        data.load("toy", tmp_path)


def test_a_placeholder_of_an_unlabelled_node_makes_no_class(tmp_path):
    y = np.where(IDS < 4, 999, IDS % 2)
    write_npz(tmp_path, "toy", node_arrays() | {"y": y, "unlabelled_nodes": IDS[:4]})
    toy = data.load("toy", tmp_path, **COUNTS)
    assert toy.num_classes == 2 and toy.y[:5].tolist() == [-1, -1, -1, -1, 0]


def test_a_label_of_its_own_for_every_node_is_a_number_to_predict(tmp_path):
    write_npz(tmp_path, "toy", node_arrays() | {"y": IDS * 7})
    with pytest.raises(DataError, match="40 different values for 40 labels: these are numbers to predict"):
        data.load("toy", tmp_path)


def test_nodes_with_several_labels_are_scored_by_rocauc(tmp_path):
    y = np.stack([IDS % 2, IDS % 3 == 0], 1).astype(float)
    y[3] = np.nan
    write_npz(tmp_path, "toy", node_arrays() | {"y": y})
    toy = data.load("toy", tmp_path)
    assert (toy.metric, toy.num_classes, toy.split) == ("rocauc", 2, "random") and toy.y.shape == (40, 2)
    assert 3 not in torch.cat([toy.train_idx, toy.val_idx, toy.test_idx]).tolist()
    write_npz(tmp_path, "toy", node_arrays() | {"y": y + 1})
    with pytest.raises(DataError, match="'rocauc' expects labels 0, 1 or missing"):
        data.load("toy", tmp_path)


def molecules(folder: Path, y: np.ndarray, metric: str | None = None) -> data.MoleculeData:
    write_npz(folder, "mol_graphs", molecule_arrays() | {"y": y})
    loaded = data.load("mol", folder, metric=metric)
    assert isinstance(loaded, data.MoleculeData)
    return loaded


G = np.arange(30)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("values", [G % 4, G % 2 + 1, G % 5 * 1_000_000])
def test_whole_numbers_are_classes_or_numbers_and_the_metric_says_which(tmp_path, values, dtype):
    y = values.astype(dtype)[:, None]
    with pytest.raises(DataError, match=r"may be classes or numbers\n  fix: pass --data.metric accuracy .*, rmse"):
        molecules(tmp_path, y)
    numbers = molecules(tmp_path, y, "rmse")
    assert (numbers.metric, numbers.num_outputs) == ("rmse", 1) and numbers.y[:, 0].tolist() == values.tolist()
    ids, number = np.unique(values, return_inverse=True)
    with pytest.warns(DataWarning) if ids[-1] >= len(ids) else nullcontext():
        classes = molecules(tmp_path, y, "accuracy")
    assert (classes.metric, classes.num_outputs) == ("accuracy", len(ids))
    assert classes.y[:, 0].tolist() == number.tolist()


def test_whole_numbers_that_hardly_repeat_are_numbers(tmp_path):
    assert molecules(tmp_path, G[:, None] * 1e6).metric == "rmse"


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        (np.where(G % 7, G % 2, np.nan), "rocauc"),
        (G * 0.5 - 3, "rmse"),
        (np.where(G % 2, -2.0, 1.0), "rmse"),
        (np.stack([G % 3, G % 2], 1), "rmse"),
    ],
)
def test_the_labels_say_which_metric(tmp_path, y, expected):
    assert molecules(tmp_path, y).metric == expected


def test_labels_minus_one_and_one_are_two_classes(tmp_path):
    y = np.where(G % 7, np.where(G % 2, 1.0, -1.0), np.nan)
    with pytest.warns(DataWarning, match=r"labels -1 and \+1 are read as 0 and 1"):
        signs = molecules(tmp_path, y)
    assert signs.metric == "rocauc"
    np.testing.assert_equal(signs.y[:, 0].numpy(), np.where(G % 7, G % 2, np.nan).astype(np.float32))
    with pytest.raises(DataError, match=r"labels -1, 0 and 1 in 'y' are ambiguous(.|\n)*--data.metric rmse"):
        molecules(tmp_path, G % 3 - 1)
    assert molecules(tmp_path, G % 3 - 1, "rmse").y.min() == -1


@pytest.mark.parametrize(
    ("y", "metric", "text"),
    [
        (G % 3, "rocauc", "expects labels 0, 1 or missing .NaN. in 'y', got 2"),
        (np.where(G == 1, np.nan, 0.0), "accuracy", "got NaN in row 1"),
        (G * 0.5, "accuracy", "expected class ids 0, 1, ... .* got 0.5 at molecule 1"),
        (np.stack([G, G], 1), "accuracy", "got 2 per molecule"),
        (G * 1e300, None, "float32 cannot hold"),
        (np.where(G, 0.5, -np.inf), None, "got infinity"),
    ],
)
def test_labels_that_do_not_fit_the_metric_are_refused(tmp_path, y, metric, text):
    with pytest.raises(DataError, match=text):
        molecules(tmp_path, y, metric)


def test_an_unknown_metric_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="accuracy, rocauc, rmse, got 'f1'"):
        molecules(tmp_path, G % 2, "f1")
