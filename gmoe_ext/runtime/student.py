"""The packed student: a graph-free model in one file, answered without torch."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ._library import library

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray


class PackedStudent:
    """A student packed by ``gmoe_ext.export.pack``, mapped from its file and ready to answer.

    Many threads may share one student: calls release the interpreter lock. A row's answer does not depend on the batch
    it comes in, nor on the number of threads. A NaN or infinity in a row shows in that row's answer alone.

    Rows ``x`` may be a dense array of any real type, or a SciPy CSR matrix, of which only the stored values are read
    (its answers equal the dense ones up to rounding). Dense C-contiguous float32 is used in place, anything else is
    copied.

    A student with a position table takes the features in ``x`` and the row of the table in ``nodes``, -1 for a node
    that the table does not hold (its position is then all zeros); or features and positions together in ``x``.

    Example:
        >>> student = PackedStudent.load("student.safetensors")
        >>> student.predict(x).argmax(axis=1)
    """

    __slots__ = ("_native", "path")

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._native = library.PackedStudent(os.fsencode(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PackedStudent:
        """Map a file and check every size, offset and type in it, and that its weights are finite, before it is used.

        The file must stay as it is while the student lives; replace it by renaming another over it, as ``pack`` does.

        Raises:
            DataError: the file is damaged or no packed student; the message says what is wrong.
            OSError: the file cannot be opened.
        """
        return cls(path)

    def predict(self, x: ArrayLike, nodes: ArrayLike | None = None) -> NDArray[np.float32]:
        """Logits [N, C] of rows x [N, D].

        Args:
            x: rows of features; see the class.
            nodes: [N] integers, rows of the position table.

        Raises:
            ValueError: shapes do not fit the student.
            TypeError: x or nodes hold something other than real numbers or integers.
            GraphIndexError: a node is outside the position table.

        Deterministic: yes, bit for bit, for any batch size and number of threads.
        """
        logits: NDArray[np.float32] = self._native.predict(x, nodes)
        return logits

    def predict_proba(self, x: ArrayLike, nodes: ArrayLike | None = None) -> NDArray[np.float32]:
        """Softmax of :meth:`predict`: probabilities [N, C] of the classes."""
        proba: NDArray[np.float32] = self._native.predict_proba(x, nodes)
        return proba

    def top_classes(
        self, x: ArrayLike, k: int = 1, nodes: ArrayLike | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k most probable classes of each row.

        Returns:
            probability [N, k], descending, and index [N, k], the classes' places in the output. Equal probabilities go
            to the lower class. A row with a NaN or infinity has probability NaN.

        Raises:
            ValueError: k is out of [1, C]; else as :meth:`predict`.
        """
        top: tuple[NDArray[np.float32], NDArray[np.int64]] = self._native.top_classes(x, k, nodes)
        return top

    def route(
        self, x: ArrayLike, layer: int = 0, nodes: ArrayLike | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The experts of one layer that serve each row; an ensemble's layers are counted through its members.

        Returns:
            gate [N, k], descending, and index [N, k], the experts' ids.

        Raises:
            ValueError: there is no such layer, or it has no router; else as :meth:`predict`.
        """
        routing: tuple[NDArray[np.float32], NDArray[np.int64]] = self._native.route(x, layer, nodes)
        return routing

    def info(self) -> dict[str, Any]:
        """What the file says: format, producer, model, classes, feature preparation, layers; and how it is served."""
        info: dict[str, Any] = self._native.info()
        return info

    @property
    def classes(self) -> list[str] | None:
        """Names of the outputs, if the student was packed with them."""
        classes: list[str] | None = self._native.classes
        return classes

    @property
    def num_outputs(self) -> int:
        """Logits of a row: the number of classes."""
        outputs: int = self._native.num_outputs
        return outputs

    @property
    def num_bytes(self) -> int:
        """Size of the file in bytes."""
        size: int = self._native.num_bytes
        return size

    @property
    def num_threads(self) -> int:
        """Most threads a call may use, 1 to 1024; at first, as many as the process has cores. One row uses one."""
        threads: int = self._native.num_threads
        return threads

    @num_threads.setter
    def num_threads(self, threads: int) -> None:
        self._native.num_threads = threads

    def __repr__(self) -> str:
        return f"PackedStudent({self.path!r}, num_bytes={self.num_bytes:,}, num_threads={self.num_threads})"
