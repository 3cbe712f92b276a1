"""Reading files without trust: no pickle, and every damage becomes a DataError that names the file."""

from __future__ import annotations

import gzip
import hashlib
import os
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

ROOT_VARIABLE = "GMOE_EXT_DATA"
_KINDS = {"integer": "iu", "real": "iuf", "text": "U"}
_MISSING_CELL = re.compile(rb"(^|,)(?=,|$)", re.MULTILINE)


class ArrayFile:
    """The arrays of one source, handed out only in the kind and shape the reader asks for.

    Args:
        path: where they come from; starts every error message.
        arrays: the arrays by name.
    """

    def __init__(self, path: Path, arrays: dict[str, Array]) -> None:
        self.path, self.arrays = path, arrays

    def __contains__(self, name: object) -> bool:
        return name in self.arrays

    def take(self, name: str, kind: str, shape: tuple[int | None, ...]) -> Array:
        """The array ``name``: kind 'integer', 'real' or 'text'; None in ``shape`` fits any size.

        Raises:
            DataError: the array is missing or has another kind or shape.
        """
        if name not in self.arrays:
            self.fail(f"array '{name}' is missing; it holds {', '.join(sorted(self.arrays)) or 'nothing'}")
        array = self.arrays[name]
        if array.dtype.kind not in _KINDS[kind]:
            self.fail(f"expected '{name}' of {kind} values, got dtype {array.dtype}")
        fits = array.ndim == len(shape) and all(
            want is None or want == have for want, have in zip(shape, array.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if want is None else str(want) for want in shape)
            self.fail(f"expected '{name}' of shape [{wanted}], got {list(array.shape)}")
        return array

    def number(self, name: str) -> int:
        """The integer scalar ``name``, not negative."""
        value = int(self.take(name, "integer", ()))
        if value < 0:
            self.fail(f"expected '{name}' >= 0, got {value}")
        return value

    def indices(self, name: str, bound: int, shape: tuple[int | None, ...]) -> Array:
        """The integer array ``name`` as int64, every value in [0, bound)."""
        array = self.take(name, "integer", shape).astype(np.int64)
        self.check_range(name, array, bound)
        return array

    def finite(self, name: str, shape: tuple[int | None, ...]) -> Array:
        """The real array ``name`` as float32, without NaN or infinity."""
        array = self.take(name, "real", shape).astype(np.float32)
        if not np.isfinite(array).all():
            position = int(np.flatnonzero(~np.isfinite(array.reshape(-1)))[0])
            self.fail(f"expected finite values in '{name}', got {array.reshape(-1)[position]} at position {position}")
        return array

    def check_range(self, name: str, array: Array, bound: int) -> None:
        """Fail with the first value of ``array`` outside [0, bound)."""
        bad = (array < 0) | (array >= bound)
        if bad.any():
            position = int(np.flatnonzero(bad.reshape(-1))[0])
            value = int(array.reshape(-1)[position])
            self.fail(f"index out of range: '{name}' at position {position} is {value}, expected 0 <= index < {bound}")

    def fail(self, message: str) -> NoReturn:
        """Raise DataError with the path in front."""
        raise DataError(f"{self.path}: {message}")


def resolve_root(root: str | os.PathLike[str] | None = None) -> Path:
    """The data folder: the argument, else the environment variable GMOE_EXT_DATA, else ``data``."""
    return Path(root if root is not None else os.environ.get(ROOT_VARIABLE) or "data")


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_npz(path: Path, wanted: Collection[str] | None = None) -> ArrayFile:
    """Read the arrays of an npz archive: all, or those ``wanted`` that are there.

    Raises:
        DataError: the file is truncated, not an npz archive, or holds object arrays (they would need pickle).
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
    return ArrayFile(path, arrays)


def read_gzip(path: Path) -> bytes:
    """The content of a gzip file.

    Raises:
        DataError: the file is missing, truncated or not gzip.
    """
    try:
        with gzip.open(path, "rb") as stream:
            return stream.read()
    except FileNotFoundError as error:
        raise DataError(f"{path}: file not found") from error
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path}: truncated or damaged gzip file ({error}); fetch it again") from error


def read_csv(path: Path, kind: str, missing: bool = False) -> Array:
    """Read a gzip-compressed csv of numbers without a header.

    Args:
        path: the file.
        kind: 'integer' (int64) or 'real' (float32).
        missing: blank cells become NaN; otherwise they are an error.

    Returns:
        [rows, columns].

    Raises:
        DataError: the file is missing or damaged, or a cell is not a number of that kind.
    """
    text = read_gzip(path).replace(b"\r\n", b"\n").removesuffix(b"\n")
    if not text:
        return np.zeros((0, 0), dtype=np.int64 if kind == "integer" else np.float32)
    # A blank line would be skipped by loadtxt, and every later row shifted by one.
    blank = _MISSING_CELL.search(text)
    if blank and not missing:
        line = text.count(b"\n", 0, blank.start()) + 1
        raise DataError(f"{path}: blank cell in line {line}")
    if blank:
        text = _MISSING_CELL.sub(rb"\1nan", text)
    try:
        return np.loadtxt(
            text.decode("ascii").splitlines(),
            dtype=np.int64 if kind == "integer" else np.float32,
            delimiter=",",
            comments=None,
            ndmin=2,
        )
    except ValueError as error:
        raise DataError(f"{path}: expected {kind} numbers separated by commas ({error})") from error
