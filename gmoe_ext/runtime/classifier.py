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

    It is already fitted, so ``fit`` raises; train with ``python -m gmoe_ext.train``. Rows are dense or CSR, as for
    :class:`PackedStudent`; a student with positions takes features and positions together.

    Attributes:
        classes_: [C] names of the classes if the student has distinct names for them, else 0 to C - 1.
        n_features_in_: number of columns of a row.
        student: the packed student.

    Examples:
        >>> classifier = StudentClassifier("student.safetensors")
        >>> classifier.predict(x), classifier.predict_proba(x), classifier.classes_
    """

    _estimator_type = "classifier"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path
        self.student = PackedStudent.load(path)
        names = self.student.classes
        self.classes_: NDArray[Any] = np.arange(self.student.num_outputs)
        if names is not None and len(set(names)) == len(names):
            self.classes_ = np.array(names)
        self.n_features_in_: int = self.student.info()["layers"][0]["in"]

    def fit(self, x: ArrayLike, y: ArrayLike) -> StudentClassifier:
        """Raise: the classifier is already trained.

        Raises:
            TypeError: always.
        """
        raise TypeError("StudentClassifier is already trained; train another one with python -m gmoe_ext.train")

    def decision_function(self, x: ArrayLike) -> NDArray[np.float32]:
        """Compute the logits [N, C]; for two classes their difference [N], second minus first."""
        logits = self.student.predict(x)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, x: ArrayLike) -> NDArray[np.float32]:
        """Compute the probabilities [N, C], columns in the order of ``classes_``."""
        return self.student.predict_proba(x)

    def predict(self, x: ArrayLike) -> NDArray[Any]:
        """Predict the class of each row, an element of ``classes_``.

        Raises:
            ValueError: a row contains a NaN or infinity, or shapes do not fit the student.
        """
        proba, index = self.student.top_classes(x)
        bad = np.flatnonzero(np.isnan(proba[:, 0]))
        if bad.size:
            raise ValueError(f"StudentClassifier.predict: row {bad[0]} of 'x' contains a NaN or infinity")
        return self.classes_[index[:, 0]]

    def score(self, x: ArrayLike, y: ArrayLike) -> float:
        """Compute the accuracy of :meth:`predict`."""
        return float((self.predict(x) == np.asarray(y)).mean())

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"path": self.path}

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
