"""Arrays from outside: read without pickle, and checked before anything uses them.

Whatever a data set is read from, its arrays are handed out by one :class:`Arrays`, whose errors name their origin.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

Array = NDArray[Any]

_KINDS = {"integer": "iu", "real": "iufb", "boolean": "b", "text": "U"}
_MISSING_CELL = re.compile(rb"(^|,)(?=,|$)", re.MULTILINE)


class Arrays:
    """The arrays of one source, handed out only in the kind and shape a reader asks for.

    Args:
        origin: the file or data set they come from; starts every error message.
        arrays: the arrays by name.
        sha256: digest of each file read, by file name.
    """

    def __init__(self, origin: object, arrays: dict[str, Array], sha256: dict[str, str] | None = None) -> None:
        self.origin, self.arrays, self.sha256 = origin, arrays, sha256 or {}

    def __contains__(self, name: object) -> bool:
        return name in self.arrays

    def take(self, name: str, kind: str, *shapes: tuple[int | None, ...]) -> Array:
        """Return the array ``name``.

        Args:
            name: of the array.
            kind: 'integer', 'real' (integers and booleans too), 'boolean' or 'text'.
            shapes: accepted shapes; None stands for any size.

        Raises:
            DataError: the array is missing or has another kind or shape.
        """
        if name not in self.arrays:
            self.fail(f"array '{name}' is missing, found {', '.join(sorted(self.arrays)) or 'none'}")
        array = self.arrays[name]
        if array.dtype.kind not in _KINDS[kind]:
            self.fail(f"expected '{name}' of {kind} values, got dtype {array.dtype}")
        if not any(_fits(array.shape, shape) for shape in shapes):
            expected = " or ".join(
                f"[{', '.join('any' if size is None else str(size) for size in shape)}]" for shape in shapes
            )
            self.fail(f"expected '{name}' of shape {expected}, got {list(array.shape)}")
        return array

    def number(self, name: str) -> int:
        """Return the non-negative integer scalar ``name``."""
        value = int(self.take(name, "integer", ()))
        if value < 0:
            self.fail(f"expected '{name}' >= 0, got {value}")
        return value

    def indices(self, name: str, bound: int, shape: tuple[int | None, ...]) -> Array:
        """Return the integer array ``name`` as int64, with every value in [0, bound)."""
        array = self.take(name, "integer", shape).astype(np.int64)
        bad = np.flatnonzero((array < 0) | (array >= bound))
        if len(bad):
            self.fail(
                f"index out of range: '{name}' at position {bad[0]} is {array.reshape(-1)[bad[0]]}, "
                f"expected 0 <= index < {bound}"
            )
        return array

    def finite(self, name: str, shape: tuple[int | None, ...]) -> Array:
        """Return the real array ``name`` as contiguous float32, without NaN or infinity."""
        array = np.ascontiguousarray(self.take(name, "real", shape), dtype=np.float32)
        if not np.isfinite(array).all():
            bad = np.flatnonzero(~np.isfinite(array))[0]
            self.fail(f"expected finite values in '{name}', got {array.reshape(-1)[bad]} at position {bad}")
        return array

    def csr_rows(self, name: str, num_rows: int, total: int) -> Array:
        """Return the row of each of the ``total`` entries of a CSR matrix whose row offsets are ``name``."""
        offsets = self.take(name, "integer", (num_rows + 1,)).astype(np.int64)
        counts = np.diff(offsets)
        if offsets[0] != 0 or offsets[-1] != total or (counts < 0).any():
            self.fail(f"expected '{name}' ascending from 0 to {total}")
        return np.repeat(np.arange(num_rows), counts)

    def fail(self, message: str) -> NoReturn:
        """Raise DataError with the origin in front."""
        raise DataError(f"{self.origin}: {message}")


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(size in (None, have) for size, have in zip(wanted, shape, strict=True))


def ascending_pairs(edges: Array, num_nodes: int) -> Array:
    """List each undirected edge of ``edges`` [2, E] once, as int64 u < v in ascending order, without self loops."""
    low, high = np.minimum(*edges).astype(np.int64), np.maximum(*edges).astype(np.int64)
    keys = np.unique((low * num_nodes + high)[low != high])
    return np.stack(np.divmod(keys, num_nodes))


def sha256(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_npz(path: Path, wanted: Collection[str] | None = None) -> Arrays:
    """Read the arrays of an npz archive: all of them, or only those in ``wanted``.

    Raises:
        DataError: the file is truncated, is not an npz archive, or holds Python objects (which need pickle).
    """
    arrays: dict[str, Array] = {}
    name = ""
    try:
        with path.open("rb") as stream, np.lib.npyio.NpzFile(stream, allow_pickle=False) as archive:
            for name in archive.files:
                if wanted is None or name in wanted:
                    arrays[name] = archive[name]
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise DataError(f"{path}: array '{name}' holds Python objects, which are not loaded") from error
        raise DataError(f"{path}: damaged array '{name}' ({error}); fetch it again") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, OSError) as error:
        raise DataError(f"{path}: truncated or damaged archive ({error}); fetch it again") from error
    return Arrays(path, arrays, {path.name: sha256(path)})


def read_csv(path: Path, kind: str, missing: bool = False) -> Array:
    """Read a gzip-compressed csv file of numbers without a header as an array [rows, columns].

    ``kind`` is 'integer' (int64) or 'real' (float32); with ``missing``, blank cells are read as NaN.

    Raises:
        DataError: the file is missing or damaged, or a cell is not a number of that kind.
    """
    try:
        with gzip.open(path, "rb") as stream:
            text = stream.read().replace(b"\r\n", b"\n").removesuffix(b"\n")
    except FileNotFoundError as error:
        raise DataError(f"{path}: file not found") from error
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path}: truncated or damaged gzip file ({error}); fetch it again") from error
    dtype = np.int64 if kind == "integer" else np.float32
    if not text:
        return np.zeros((0, 0), dtype=dtype)
    # loadtxt would skip a blank line and shift every later row by one.
    blank = _MISSING_CELL.search(text)
    if blank and not missing:
        line = text.count(b"\n", 0, blank.start()) + 1
        raise DataError(f"{path}: blank cell in line {line}")
    if blank:
        text = _MISSING_CELL.sub(rb"\1nan", text)
    try:
        return np.loadtxt(text.decode("ascii").splitlines(), dtype=dtype, delimiter=",", comments=None, ndmin=2)
    except ValueError as error:
        raise DataError(f"{path}: expected {kind} numbers separated by commas ({error})") from error
