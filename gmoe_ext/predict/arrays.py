"""Rows from .npy and .npz files, read a piece at a time: neither is ever whole in memory."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .chunk import Chunk, rows_at_once, to_float32


class _Array:
    """An array behind an open stream, of which rows are read in order."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self.shape, fortran, self.dtype = read(stream)
        if self.dtype.kind not in "fiub":
            raise DataError(f"expected {name!r} of real numbers, got {self.dtype}")
        if fortran and len(self.shape) > 1 and min(self.shape) > 1:
            raise DataError(
                f"{name!r} is in Fortran order, whose rows cannot stream; save np.ascontiguousarray({name})"
            )
        self._stream, self._row_shape = stream, self.shape[1:]
        self._row_bytes = int(np.prod(self._row_shape, dtype=np.int64)) * self.dtype.itemsize

    def skip(self, rows: int) -> None:
        self._stream.seek(rows * self._row_bytes, 1)

    def read(self, rows: int) -> NDArray[Any]:
        data = self._stream.read(rows * self._row_bytes)
        if len(data) != rows * self._row_bytes:
            raise DataError("the file ends before its array does")
        return np.frombuffer(data, self.dtype).reshape(rows, *self._row_shape)


class ArrayReader:
    """Rows of an .npy file, or of the array ``x`` of an .npz file, with its array ``nodes`` if it has one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with ExitStack() as stack:
            x, nodes = self._open(stack)
            if len(x.shape) not in (1, 2):
                raise DataError(f"expected rows of shape [rows, features], got {list(x.shape)}")
            self._single = len(x.shape) == 1
            self.total: int | None = 1 if self._single else x.shape[0]
            self.has_nodes = nodes is not None
            if nodes is not None and (nodes.dtype.kind not in "iu" or nodes.shape != (self.total,)):
                raise DataError(
                    f"expected 'nodes' of {self.total} integers, got {nodes.dtype} of shape {list(nodes.shape)}"
                )

    def _open(self, stack: ExitStack) -> tuple[_Array, _Array | None]:
        if self._path.suffix == ".npy":
            return _Array(stack.enter_context(self._path.open("rb")), "x"), None
        archive = stack.enter_context(zipfile.ZipFile(self._path))
        if "x.npy" not in archive.namelist():
            raise DataError(f"expected an array 'x', got {', '.join(archive.namelist()) or 'none'}")
        x = _Array(stack.enter_context(archive.open("x.npy")), "x")
        if "nodes.npy" not in archive.namelist():
            return x, None
        return x, _Array(stack.enter_context(archive.open("nodes.npy")), "nodes")

    def chunks(self, begin: int, columns: int) -> Iterator[Chunk]:
        """Rows from ``begin`` on."""
        with ExitStack() as stack:
            x, nodes = self._open(stack)
            if self._single:
                if begin == 0:
                    yield Chunk(to_float32(x.read(x.shape[0])[None]), None)
                return
            for array in (x, nodes):
                if array is not None:
                    array.skip(begin)
            size = rows_at_once(columns)
            for row in range(begin, x.shape[0], size):
                count = min(size, x.shape[0] - row)
                node = None if nodes is None else nodes.read(count).astype(np.int64)
                yield Chunk(to_float32(x.read(count)), node)
