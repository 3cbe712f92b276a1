"""A packed student as a scikit-learn style classifier; scikit-learn itself is not needed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from .student import PackedStudent

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


class StudentClassifier:
    """A trained, packed student with the methods that scikit-learn's scorers and meta-estimators call.

    It is fitted from the start: ``fit`` refuses, training is ``python -m gmoe_ext.train``. Rows are dense or CSR, as
    for :class:`PackedStudent`; a student with positions takes features and positions together.

    Attributes:
        classes_: [C] names of the classes if the student has them and they differ, else 0 to C - 1.
        n_features_in_: columns of a row.
        student: the packed student.

    Example:
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
        """Refuses.

        Raises:
            TypeError: always.
        """
        raise TypeError("StudentClassifier is trained already; train another with python -m gmoe_ext.train")

    def decision_function(self, x: ArrayLike) -> NDArray[np.float32]:
        """Logits [N, C]; with two classes [N], that of the second less that of the first."""
        logits = self.student.predict(x)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, x: ArrayLike) -> NDArray[np.float32]:
        """Probabilities [N, C], columns in the order of ``classes_``."""
        return self.student.predict_proba(x)

    def predict(self, x: ArrayLike) -> NDArray[Any]:
        """The most probable class of each row, an element of ``classes_``.

        Raises:
            ValueError: a row holds a NaN or infinity, or shapes do not fit the student.
        """
        proba, index = self.student.top_classes(x)
        bad = np.flatnonzero(np.isnan(proba[:, 0]))
        if bad.size:
            raise ValueError(f"StudentClassifier.predict: row {bad[0]} of 'x' holds a NaN or infinity")
        chosen: NDArray[Any] = self.classes_[index[:, 0]]
        return chosen

    def score(self, x: ArrayLike, y: ArrayLike) -> float:
        """Share of rows whose class is predicted."""
        return float((self.predict(x) == np.asarray(y)).mean())

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments it was made with."""
        return {"path": self.path}

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        # Asked for by scikit-learn alone, which is then there.
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(sparse=True),
        )
