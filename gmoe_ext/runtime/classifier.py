"""A packed student with the interface of a scikit-learn classifier; scikit-learn itself is not required."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from .student import PackedStudent

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


class StudentClassifier:
    """A packed student with the methods that scikit-learn's scorers and meta-estimators call.

    It is already fitted, so ``fit`` raises; train with ``python -m gmoe_ext.train``. Rows are dense, CSR or a data
    frame, as for :class:`PackedStudent`; a student with positions takes features and positions together.

    Attributes:
        classes_: [C] names of the classes, sorted as scikit-learn expects, if the student has distinct names for them;
            else 0 to C - 1. Columns of probabilities are in this order, which need not be that of the student's logits.
        n_features_in_: number of columns of a row.
        feature_names_in_: [n_features_in_] names of the columns; only if the student has names for all of them.
        student: the packed student.

    Examples:
        >>> classifier = StudentClassifier("student.safetensors")
        >>> classifier.predict(x), classifier.predict_proba(x), classifier.classes_
    """

    _estimator_type = "classifier"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path
        self.student = PackedStudent.load(path)
        classes, names = self.student.classes, self.student.feature_names
        distinct = classes is not None and len(set(classes)) == len(classes)
        # _order[i] is the output of classes_[i].
        self.classes_, self._order = np.unique(
            np.array(classes) if distinct else np.arange(self.student.num_outputs), return_index=True
        )
        self.n_features_in_: int = self.student.info()["layers"][0]["in"]
        if names is not None and len(names) == self.n_features_in_:
            self.feature_names_in_ = np.array(names, object)

    def fit(self, x: ArrayLike, y: ArrayLike) -> StudentClassifier:
        """Raise: the classifier is already trained.

        Raises:
            TypeError: always.
        """
        raise TypeError("StudentClassifier is already trained; train another one with python -m gmoe_ext.train")

    def decision_function(self, x: ArrayLike) -> NDArray[np.float32]:
        """Compute the logits [N, C], columns in the order of ``classes_``; for two classes second minus first [N]."""
        logits = self.student.predict(x)[:, self._order]
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, x: ArrayLike) -> NDArray[np.float32]:
        """Compute the probabilities [N, C], columns in the order of ``classes_``."""
        return self.student.predict_proba(x)[:, self._order]

    def predict(self, x: ArrayLike) -> NDArray[Any]:
        """Predict the class of each row, an element of ``classes_``.

        Raises:
            ValueError: a row contains a NaN or infinity, or shapes do not fit the student.
        """
        proba, index = self.student.top_classes(x)
        bad = np.flatnonzero(np.isnan(proba[:, 0]))
        if bad.size:
            raise ValueError(f"StudentClassifier.predict: row {bad[0]} of 'x' contains a NaN or infinity")
        return self.classes_[np.argsort(self._order)[index[:, 0]]]

    def score(self, x: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Compute the accuracy of :meth:`predict`.

        Args:
            x: rows.
            y: [N] their true classes, elements of ``classes_``.
            sample_weight: [N] weights of the rows; by default all are equal.

        Raises:
            ValueError: y has another shape, or labels that are not in ``classes_``; else as :meth:`predict`.
        """
        predicted, labels = self.predict(x), np.asarray(y)
        if labels.shape != predicted.shape:
            raise ValueError(f"StudentClassifier.score: expected 'y' of shape {predicted.shape}, got {labels.shape}")
        # NumPy would compare numbers with names as text.
        same_kind = (labels.dtype.kind in "biuf") == (self.classes_.dtype.kind in "biuf")
        foreign = np.flatnonzero(~np.isin(labels, self.classes_)) if same_kind else range(len(labels))
        if len(foreign):
            known = ", ".join(map(repr, self.classes_[:5].tolist())) + (", ..." if len(self.classes_) > 5 else "")
            raise ValueError(
                f"StudentClassifier.score: expected labels of classes_ ({known}), got {labels[foreign[0]]!r} for row "
                f"{foreign[0]}"
            )
        weights = None if sample_weight is None else np.asarray(sample_weight, np.float64)
        return float(np.average(predicted == labels, weights=weights))

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"path": self.path}

    def set_params(self, **params: Any) -> StudentClassifier:
        """Load the student of another ``path``.

        Raises:
            ValueError: there is no such parameter.
        """
        if not params.keys() <= {"path"}:
            raise ValueError(f"StudentClassifier.set_params: expected 'path', got {', '.join(params)}")
        if params:
            self.__dict__ = StudentClassifier(params["path"]).__dict__
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        # Only scikit-learn calls this, so it is installed.
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(sparse=True),
        )
