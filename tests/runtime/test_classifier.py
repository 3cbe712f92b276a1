"""A packed student as a scikit-learn classifier."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gmoe_ext import models
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
