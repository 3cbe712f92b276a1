"""The packed student: a graph-free model in one file, served without torch."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, DataError, NativeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

_FIX = "pip install --no-build-isolation . (in the source tree: python setup.py build_ext --inplace)"


def _load_library() -> ModuleType:
    python = sys.version.split()[0]
    if find_spec("gmoe_ext._runtime") is None:
        raise NativeError(f"gmoe_ext.runtime: the serving library is not built for Python {python}.\n  fix: {_FIX}")
    try:
        return importlib.import_module("gmoe_ext._runtime")
    except ImportError as error:
        raise NativeError(
            f"gmoe_ext.runtime: the serving library does not load under Python {python}: {error}\n"
            f"  fix: build it again here: {_FIX}"
        ) from error


library = _load_library()


def include_dir() -> Path:
    """Return the directory of ``gmoe_runtime.h``, the C interface of packed students."""
    return _installed("include/gmoe_runtime.h").parent


def library_dir() -> Path:
    """Return the directory of ``libgmoe_runtime.so``, the library behind ``gmoe_runtime.h``."""
    return _installed("libgmoe_runtime.so").parent


def _installed(name: str) -> Path:
    path = Path(__file__).resolve().parents[1] / name
    if not path.is_file():
        raise NativeError(f"gmoe_ext.runtime: {path.name} is not built: expected {path}\n  fix: {_FIX}")
    return path


class PackedStudent:
    """A student packed by ``gmoe_ext.export.pack``, mapped from its file and ready to predict.

    Threads may share a student: calls release the interpreter lock, and an exiting interpreter waits for those that
    run. A pickled or copied student loads its file again and refuses one that has changed. A row's result depends
    neither on its batch nor on the number of threads. A NaN or infinity in a row affects the result of that row only.

    Rows ``x`` are a dense array of any real type, or a SciPy CSR matrix, of which only the stored values are read (its
    results equal the dense ones up to rounding). Dense C-contiguous float32 is used in place, anything else is copied.

    A student with a position table takes features in ``x`` and rows of the table in ``nodes``, -1 for a node that the
    table does not hold (its position is then zeros); or features and positions together in ``x``.

    Examples:
        >>> student = PackedStudent.load("student.safetensors")
        >>> student.predict(x).argmax(axis=1)
    """

    __slots__ = ("_native", "path")

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        name = os.fsencode(path)
        if b"\0" in name:
            raise ArgumentError(f"PackedStudent: expected 'path' without null characters, got {self.path!r}")
        self._native = library.PackedStudent(name)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PackedStudent:
        """Map a file, after checking every size, offset and type in it and that its weights are finite.

        The file must not change while the student is in use; replace it by renaming a new file over it, as ``pack``
        does.

        Raises:
            DataError: the file is damaged or is not a packed student; the message says what is wrong.
            OSError: the file cannot be opened.
        """
        return cls(path)

    def predict(self, x: ArrayLike, nodes: ArrayLike | None = None) -> NDArray[np.float32]:
        """Compute the logits [N, C] of rows x [N, D].

        Args:
            x: rows of features; see the class.
            nodes: [N] integers, rows of the position table.

        Raises:
            ValueError: shapes do not fit the student.
            TypeError: x or nodes hold something other than real numbers or integers.
            GraphIndexError: a node is outside the position table.

        Deterministic: yes, bit for bit, for any batch size and number of threads.
        """
        return self._native.predict(x, nodes)

    def predict_proba(self, x: ArrayLike, nodes: ArrayLike | None = None) -> NDArray[np.float32]:
        """Compute the probabilities [N, C] of the classes: the softmax of :meth:`predict`."""
        return self._native.predict_proba(x, nodes)

    def top_classes(
        self, x: ArrayLike, k: int = 1, nodes: ArrayLike | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the k most probable classes of each row.

        Returns:
            probability [N, k], descending, and index [N, k], positions in the output. Equal probabilities go to the
            lower class. A row with a NaN or infinity has probability NaN.

        Raises:
            ValueError: k is out of [1, C]; else as :meth:`predict`.
        """
        return self._native.top_classes(x, k, nodes)

    def route(
        self, x: ArrayLike, layer: int = 0, nodes: ArrayLike | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the experts that serve each row in one layer; layers are counted through the members of an ensemble.

        Returns:
            gate [N, k], descending, and index [N, k], the experts' ids.

        Raises:
            ValueError: there is no such layer, or it has no router; else as :meth:`predict`.
        """
        return self._native.route(x, layer, nodes)

    def info(self) -> dict[str, Any]:
        """Describe the file (format, producer, model, classes, feature preparation, layers) and how it is served."""
        return self._native.info()

    @property
    def classes(self) -> list[str] | None:
        """Names of the outputs, if the student was packed with them."""
        return self._native.classes

    @property
    def feature_names(self) -> list[str] | None:
        """Names of the feature columns, if the student was packed with them."""
        return self._native.feature_names

    @property
    def sha256(self) -> str:
        """Digest of the file as it is mapped."""
        return hashlib.sha256(self._native.content()).hexdigest()

    @property
    def num_outputs(self) -> int:
        """Number of classes."""
        return self._native.num_outputs

    @property
    def num_bytes(self) -> int:
        """Size of the file in bytes."""
        return self._native.num_bytes

    @property
    def num_threads(self) -> int:
        """Maximum number of threads of a call, 1 to 1024; initially the number of cores. A single row uses one."""
        return self._native.num_threads

    @num_threads.setter
    def num_threads(self, threads: int) -> None:
        self._native.num_threads = threads

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_again, (os.path.abspath(self.path), self.sha256, self.num_threads)

    def __repr__(self) -> str:
        return f"PackedStudent({self.path!r}, num_bytes={self.num_bytes:,}, num_threads={self.num_threads})"


def _load_again(path: str, sha256: str, num_threads: int) -> PackedStudent:
    student = PackedStudent(path)
    if student.sha256 != sha256:
        raise DataError(f"{path}: the file has changed since the student was pickled; load it with PackedStudent.load")
    student.num_threads = num_threads
    return student
