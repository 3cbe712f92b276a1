"""Promises of the metrics, against OGB's Evaluators and by hand."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gmoe_ext.data import metrics
from gmoe_ext.errors import DataError

NAN = float("nan")


@pytest.fixture(scope="module")
def evaluators():
    # ogb and `outdated` both ask the network for newer versions when they are imported; a stand-in does not.
    quiet = types.ModuleType("outdated")
    quiet.check_outdated = lambda package, version: (False, version)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "outdated", quiet)
        graphs = pytest.importorskip("ogb.graphproppred")
        links = pytest.importorskip("ogb.linkproppred")
    return graphs.Evaluator, links.Evaluator


@pytest.mark.parametrize("seed", range(5))
def test_rocauc_equals_ogbs(evaluators, seed):
    generator = np.random.default_rng(seed)
    scores = np.round(generator.normal(size=(60, 12)), 1)
    labels = (generator.random((60, 12)) < 0.3).astype(float)
    labels[generator.random((60, 12)) < 0.3] = NAN
    labels[:, 4] = 1.0
    expected = evaluators[0]("ogbg-moltox21").eval({"y_true": labels, "y_pred": scores})["rocauc"]
    assert metrics.rocauc(torch.from_numpy(scores), torch.from_numpy(labels)) == pytest.approx(expected, abs=1e-12)


def test_rmse_and_hits_equal_ogbs(evaluators):
    generator = np.random.default_rng(0)
    values, labels = generator.normal(size=(50, 1)), generator.normal(size=(50, 1))
    expected = evaluators[0]("ogbg-molesol").eval({"y_true": labels, "y_pred": values})["rmse"]
    assert metrics.rmse(torch.from_numpy(values), torch.from_numpy(labels)) == pytest.approx(expected)
    positive, negative = torch.randn(40), torch.randn(70)
    got = evaluators[1]("ogbl-ddi").eval({"y_pred_pos": positive, "y_pred_neg": negative})["hits@20"]
    assert metrics.hits(positive, negative, 20) == pytest.approx(got)
    assert metrics.hits(positive, negative[:5], 20) == 1.0


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=30))
def test_rocauc_is_the_fraction_of_ordered_pairs(pairs):
    positive = [score for score, label in pairs if label]
    negative = [score for score, label in pairs if not label]
    scores, labels = torch.tensor([[float(s)] for s, _ in pairs]), torch.tensor([[float(b)] for _, b in pairs])
    if not positive or not negative:
        with pytest.raises(DataError, match="no task"):
            metrics.rocauc(scores, labels)
        return
    won = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    assert metrics.rocauc(scores, labels) == pytest.approx(won / (len(positive) * len(negative)))


def test_rmse_skips_missing_labels():
    values, labels = torch.tensor([[1.0, 2.0], [5.0, 2.0]]), torch.tensor([[4.0, 2.0], [NAN, 2.0]])
    assert metrics.rmse(values, labels) == pytest.approx(1.5)
    with pytest.raises(DataError, match="no label"):
        metrics.rmse(values, torch.full((2, 2), NAN))


def test_accuracy_takes_logits_or_ids():
    logits, y = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.4, 0.6]]), torch.tensor([1, 0, 0])
    assert metrics.accuracy(logits, y) == pytest.approx(2 / 3)
    assert metrics.evaluate("accuracy", logits.argmax(1), y.unsqueeze(1)) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match=r"\[2\] and \[3\]"):
        metrics.accuracy(logits[:2], y)


@pytest.mark.parametrize("name", metrics.NAMES)
def test_a_diverged_model_earns_no_score(name):
    with pytest.raises(ValueError, match="did training diverge"):
        metrics.evaluate(name, torch.full((3, 1), NAN), torch.tensor([[1.0], [0.0], [1.0]]))


def test_direction_and_names():
    assert all(metrics.better(name, 0.9, 0.8) and not metrics.better(name, 0.8, 0.9) for name in ("rocauc", "accuracy"))
    assert metrics.better("rmse", 0.8, 0.9) and not metrics.better("rmse", 0.9, 0.8)
    assert metrics.better("rmse", 9.0, float("nan")) and not metrics.better("rmse", float("nan"), float("nan"))
    assert metrics.better("rmse", 0.9, 0.9, ties=True) and not metrics.better("rmse", 0.9, 0.9)
    with pytest.raises(ValueError, match="accuracy, rocauc, rmse, got 'f1'"):
        metrics.evaluate("f1", torch.ones(1, 1), torch.ones(1, 1))


@pytest.mark.parametrize(
    ("metric", "y", "text"),
    [
        ("rocauc", [[0.0], [1.0], [1.0], [1.0], [0.0], [1.0]], "the val part has no label 0, so ROC-AUC is undefined"),
        ("rocauc", [[0.0], [1.0], [0.0], [1.0], [0.0], [0.0]], "the test part has no label 1, so ROC-AUC is undefined"),
        ("rocauc", [[0.0, 1.0]] * 2 + [[0.0, 1.0]] * 2 + [[0.0, 1.0]] * 2, "the val part has both classes in no task"),
        ("rocauc", [[NAN], [NAN], [0.0], [1.0], [0.0], [1.0]], "the train part has no label at all"),
        ("rmse", [[1.0], [2.0], [NAN], [NAN], [1.0], [3.0]], "the val part has no label at all"),
        ("rmse", [[1.0, 1.0]] * 4 + [[1.0, NAN]] * 2, "the test part has no label of task 1, so RMSE is undefined"),
    ],
)
def test_a_part_that_cannot_be_scored_is_named_before_any_work(metric, y, text):
    parts = {"train": torch.tensor([0, 1]), "val": torch.tensor([2, 3]), "test": torch.tensor([4, 5])}
    with pytest.raises(DataError, match=f"data 'd': {text}(.|\n)*fix: "):
        metrics.check_parts("d", metric, torch.tensor(y), parts)


def test_parts_that_can_be_scored_are_accepted():
    parts = {"train": torch.tensor([0]), "val": torch.tensor([1, 2]), "test": torch.tensor([3])}
    metrics.check_parts("d", "accuracy", torch.tensor([0, 0, 0, 1]), parts)
    metrics.check_parts(
        "d", "rocauc", torch.tensor([[0.0], [0.0], [1.0], [1.0]]), parts | {"test": torch.tensor([1, 2])}
    )
    metrics.check_parts("d", "rmse", torch.tensor([[0.5], [0.0], [NAN], [1.0]]), parts)
