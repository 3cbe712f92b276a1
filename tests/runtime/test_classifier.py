"""A packed student as a scikit-learn classifier."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from gmoe_ext import models
from gmoe_ext.errors import ConfigError, DataError
from gmoe_ext.export import pack
from gmoe_ext.runtime import PackedStudent, StudentClassifier


def test_it_answers_with_the_names_of_the_classes(student_file: Path, rows: torch.Tensor) -> None:
    classifier, student, x = StudentClassifier(student_file), PackedStudent.load(student_file), rows.numpy()
    assert classifier.classes_.tolist() == list("abcdefg") and classifier.n_features_in_ == 24
    expected = np.array(list("abcdefg"))[student.predict(x).argmax(1)]
    assert np.array_equal(classifier.predict(x), expected)
    assert np.array_equal(classifier.predict_proba(x), student.predict_proba(x))
    assert np.array_equal(classifier.decision_function(x), student.predict(x))
    assert classifier.score(x, expected) == 1 and classifier.get_params() == {"path": student_file}


@pytest.mark.parametrize("names", [None, ["same", "same"]])
def test_without_distinct_names_classes_are_numbers(tmp_path: Path, names: list[str] | None) -> None:
    model = models.build("mlp", in_dim=4, hidden_dim=8, out_dim=2).eval()
    classifier = StudentClassifier(pack(model, tmp_path / "s", class_names=names))
    x = np.random.default_rng(0).standard_normal((20, 4))
    assert classifier.classes_.tolist() == [0, 1]
    assert np.array_equal(classifier.predict(x), (classifier.decision_function(x) > 0).astype(int))


@pytest.mark.parametrize("names", [["yes", "no"], ["dog", "cat", "ape"], ["b", "a", "10", "9"], None])
def test_columns_are_in_the_order_of_the_sorted_classes(tmp_path: Path, names: list[str] | None) -> None:
    torch.manual_seed(0)
    model = models.build("mlp", in_dim=4, hidden_dim=8, out_dim=len(names or range(3)), num_layers=2).eval()
    path, x = pack(model, tmp_path / "s", class_names=names), np.random.default_rng(0).standard_normal((300, 4))
    classifier, student = StudentClassifier(path), PackedStudent.load(path)
    kept = names or list(range(3))
    assert classifier.classes_.tolist() == sorted(kept)
    proba, logits = classifier.predict_proba(x), student.predict(x)
    for column, name in enumerate(classifier.classes_.tolist()):
        assert np.array_equal(proba[:, column], student.predict_proba(x)[:, kept.index(name)])
    assert np.array_equal(classifier.predict(x), np.array(kept)[logits.argmax(1)])
    assert np.array_equal(classifier.classes_[proba.argmax(1)], classifier.predict(x))
    if len(kept) == 2:
        assert np.array_equal(
            classifier.classes_[(classifier.decision_function(x) > 0).astype(int)], classifier.predict(x)
        )
    else:
        assert np.array_equal(classifier.decision_function(x).argmax(1), proba.argmax(1))
    pytest.importorskip("sklearn")
    from sklearn.metrics import get_scorer, log_loss, roc_auc_score

    labels = np.random.default_rng(1).permutation(classifier.predict(x))
    expected = np.mean([roc_auc_score(labels == name, proba[:, i]) for i, name in enumerate(classifier.classes_)])
    assert get_scorer("roc_auc" if len(kept) == 2 else "roc_auc_ovr")(classifier, x, labels) == pytest.approx(expected)
    index = [kept.index(label) for label in labels.tolist()]
    truth = log_loss(index, student.predict_proba(x).astype(float), labels=list(range(len(kept))))
    assert get_scorer("neg_log_loss")(classifier, x, labels) == pytest.approx(-truth, rel=1e-5)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (np.zeros(5, int), r"expected labels of classes_ \('a', 'b', 'c', 'd', 'e', ...\), got .*0.* for row 0"),
        (np.array([0.0] * 5), "expected labels of classes_"),
        (np.array([b"a"] * 5), "expected labels of classes_"),
        (np.array([0] * 5, object), "expected labels of classes_"),
        (np.array(["a", "b", "?", "c", "d"]), "got .*'\\?'.* for row 2"),
        (np.array([["a"]] * 5), r"expected 'y' of shape \(5,\), got \(5, 1\)"),
        (np.array(["a"]), r"expected 'y' of shape \(5,\), got \(1,\)"),
    ],
)
def test_labels_of_another_kind_are_refused(student_file: Path, rows: torch.Tensor, labels, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        StudentClassifier(student_file).score(rows[:5].numpy(), labels)


def test_labels_that_are_numbers(tmp_path: Path) -> None:
    model = models.build("mlp", in_dim=4, hidden_dim=8, out_dim=2).eval()
    classifier, x = StudentClassifier(pack(model, tmp_path / "s")), np.ones((4, 4))
    for labels in (classifier.predict(x), classifier.predict(x).astype(float), classifier.predict(x) == 1):
        assert classifier.score(x, labels) == 1
    for labels in (np.full(4, 2), np.full(4, 0.5), np.full(4, -1), np.array(["0"] * 4)):
        with pytest.raises(ValueError, match="expected labels of classes_"):
            classifier.score(x, labels)


def test_rows_may_have_weights(student_file: Path, rows: torch.Tensor) -> None:
    classifier, x = StudentClassifier(student_file), rows[:4].numpy()
    labels = classifier.predict(x)
    labels[0] = "a" if labels[0] != "a" else "b"
    assert classifier.score(x, labels, sample_weight=[3, 1, 1, 1]) == 0.5
    with pytest.raises((ValueError, TypeError)):
        classifier.score(x, labels, sample_weight=[1, 1])


def test_copies_are_the_same_student(student_file: Path, rows: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(student_file.parent)
    classifier, x = StudentClassifier(student_file.name), rows.numpy()
    classifier.student.num_threads = 1
    pickled = pickle.dumps(classifier)
    monkeypatch.chdir("/")  # the path was relative
    for copied in (pickle.loads(pickled), PackedStudent.__reduce__(classifier.student)[1]):
        if isinstance(copied, StudentClassifier):
            assert copied.student.num_threads == 1 and copied.get_params() == classifier.get_params()
            assert np.array_equal(copied.predict_proba(x), classifier.predict_proba(x))
    monkeypatch.chdir(student_file.parent)
    assert np.array_equal(copy.deepcopy(classifier).predict(x), classifier.predict(x))
    sklearn = pytest.importorskip("sklearn.base")
    assert np.array_equal(sklearn.clone(classifier).predict(x), classifier.predict(x))


def test_a_copy_of_a_file_that_has_changed_is_refused(student_file: Path, rows: torch.Tensor) -> None:
    pickled = pickle.dumps(PackedStudent.load(student_file))
    pack(models.build("mlp", in_dim=24, hidden_dim=8, out_dim=7).eval(), student_file)
    with pytest.raises(DataError, match="the file has changed since the student was pickled"):
        pickle.loads(pickled)


def test_parameters_can_be_set(student_file: Path, tmp_path: Path) -> None:
    other = pack(models.build("mlp", in_dim=4, hidden_dim=8, out_dim=2).eval(), tmp_path / "other")
    classifier = StudentClassifier(student_file)
    assert classifier.set_params() is classifier and classifier.n_features_in_ == 24
    assert classifier.set_params(path=other) is classifier
    assert (classifier.n_features_in_, classifier.path, len(classifier.classes_)) == (4, other, 2)
    with pytest.raises(ValueError, match="expected 'path', got threads"):
        classifier.set_params(threads=1)


def test_columns_of_a_data_frame_are_checked_by_name(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    model = models.build("mlp", in_dim=4, hidden_dim=8, out_dim=2).eval()
    path = pack(model, tmp_path / "s", feature_names=list("abcd"))
    classifier, student, x = StudentClassifier(path), PackedStudent.load(path), np.random.default_rng(0).random((5, 4))
    frame, expected = pandas.DataFrame(x, columns=list("abcd")), student.predict(x)
    assert classifier.feature_names_in_.tolist() == student.feature_names == list("abcd")
    for fits in (frame, pandas.DataFrame(x), frame[list("dcba")][student.feature_names]):
        assert np.array_equal(student.predict(fits), expected)
    for call in (student.predict, student.predict_proba, student.top_classes, classifier.predict):
        for wrong in (frame[list("bacd")], frame.rename(columns={"d": "e"}), frame.rename(columns={"a": 0})):
            with pytest.raises(ValueError, match=r"column \d of 'x' is '.', this student's is '.'; pass x\[student"):
                call(wrong)
    with pytest.raises(ConfigError, match="expected different 'feature_names', got 'a' twice"):
        pack(model, tmp_path / "s", feature_names=list("abca"))
    with pytest.raises(ConfigError, match="expected 4 'feature_names', got 3"):
        pack(model, tmp_path / "s", feature_names=list("abc"))


def test_refused(student_file: Path) -> None:
    classifier, x = StudentClassifier(student_file), np.ones((3, 24))
    x[1, 0] = np.nan
    with pytest.raises(ValueError, match="row 1 of 'x' contains a NaN"):
        classifier.predict(x)
    with pytest.raises(TypeError, match="already trained"):
        classifier.fit(x, np.zeros(3))


def test_scikit_learn_accepts_it_as_a_classifier(student_file: Path, rows: torch.Tensor) -> None:
    pytest.importorskip("sklearn", minversion="1.6")
    from scipy.sparse import csr_array
    from sklearn.base import is_classifier
    from sklearn.metrics import get_scorer
    from sklearn.utils.validation import check_is_fitted

    classifier, x = StudentClassifier(student_file), rows.numpy()
    labels = classifier.predict(x)
    check_is_fitted(classifier)
    assert is_classifier(classifier)
    assert get_scorer("accuracy")(classifier, csr_array(x), labels) == 1
    assert get_scorer("neg_log_loss")(classifier, x, np.resize(list("abcdefg"), len(x))) < 0
