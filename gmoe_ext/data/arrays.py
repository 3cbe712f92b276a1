"""Arrays from outside: read without pickle, and checked before anything uses them.

Whatever a data set is read from, its arrays are handed out by one :class:`Arrays`, whose errors name their origin and
which knows what was never asked for. No size that a file claims is believed: it must match the bytes that are there
(:func:`check_expansion` bounds what compression and sparse storage may expand to).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import DataError, DataWarning

Array = NDArray[Any]

_KINDS = {"integer": "iu", "real": "iufb", "boolean": "b", "text": "U"}
_MISSING_CELL = re.compile(rb"(^|,)(?=,|$)", re.MULTILINE)
# Deflate packs at most 1,032 bytes into one, and real data sets stay below 300; small files may do as they like.
_MAX_EXPANSION, _FREE_BYTES = 500, 1 << 28
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_BAD_HEADER = (ValueError, LookupError, SyntaxError, TypeError, TokenError, OverflowError, RecursionError, MemoryError)
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_BLOCK = 1 << 20


class Arrays:
    """The arrays of one source, handed out only in the kind and shape a reader asks for.

    Args:
        origin: the file or data set they come from; starts every error message.
        arrays: the arrays by name.
        sha256: digest of each file read, by file name.
    """

    def __init__(self, origin: object, arrays: dict[str, Array], sha256: dict[str, str] | None = None) -> None:
        self.origin, self.arrays, self.sha256 = origin, arrays, sha256 or {}
        self.remarks: list[str] = []
        self._used: set[str] = set()

    @classmethod
    def of(cls, origin: str, given: Mapping[str, Any]) -> Arrays:
        """Take what a caller gave, tensors or anything that NumPy makes an array of."""
        made = cls(origin, {})
        for name, value in given.items():
            try:
                made.arrays[name] = value.numpy(force=True) if isinstance(value, torch.Tensor) else np.asarray(value)
            except (TypeError, ValueError, RuntimeError) as error:
                is_tensor = isinstance(value, torch.Tensor)
                got = f"a tensor of {value.dtype}, {value.layout}" if is_tensor else type(value).__name__
                fix = "pass a dense tensor, as .to_dense() and .float() make it" if is_tensor else f"{error}"
                made.fail(f"expected '{name}' to be a dense array, got {got}\n  fix: {fix}")
        return made

    def __contains__(self, name: object) -> bool:
        return name in self.arrays

    def use(self, *names: str) -> None:
        """Say that arrays are known and need not be read, so that they are not named as unread."""
        self._used.update(names)

    def remark(self, text: str) -> None:
        """Tell the user how something was read."""
        self.remarks.append(text)

    def all_remarks(self) -> tuple[str, ...]:
        """Return the remarks of the readers, then the names of the arrays that nobody asked for."""
        unread = sorted(set(self.arrays) - self._used)
        return (*self.remarks, *([f"not read: {', '.join(unread)}"] if unread else []))

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
        self._used.add(name)
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
        """Return the integer scalar ``name``, 0 <= value < 2^31."""
        value = int(self.take(name, "integer", ()))
        if not 0 <= value < 2**31:
            self.fail(f"expected 0 <= '{name}' < 2^31, got {value}")
        return value

    def indices(self, name: str, bound: int, shape: tuple[int | None, ...]) -> Array:
        """Return the integer array ``name`` as int64, with every value in [0, bound)."""
        array = self.take(name, "integer", shape)
        bad = np.flatnonzero((array < 0) | (array >= bound))
        if len(bad):
            self.fail(
                f"index out of range: '{name}' at position {bad[0]} is {array.reshape(-1)[bad[0]]}, "
                f"expected 0 <= index < {bound}"
            )
        return array.astype(np.int64)

    def finite(self, name: str, shape: tuple[int | None, ...]) -> Array:
        """Return the real array ``name`` as contiguous float32, without NaN or infinity."""
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity and is refused
            array = np.ascontiguousarray(self.take(name, "real", shape), dtype=np.float32)
        if not np.isfinite(array).all():
            bad = np.flatnonzero(~np.isfinite(array))[0]
            self.fail(f"expected finite values in '{name}', got {array.reshape(-1)[bad]} at position {bad}")
        return array

    def csr_rows(self, name: str, num_rows: int, total: int) -> Array:
        """Return the row of each of the ``total`` entries of a CSR matrix whose row offsets are ``name``."""
        offsets = self.take(name, "integer", (num_rows + 1,))
        in_range = bool(((offsets >= 0) & (offsets <= total)).all())
        offsets = offsets.astype(np.int64)
        if not in_range or offsets[0] != 0 or offsets[-1] != total or (np.diff(offsets) < 0).any():
            self.fail(f"expected '{name}' ascending from 0 to {total}")
        return np.repeat(np.arange(num_rows), np.diff(offsets))

    def fail(self, message: str) -> NoReturn:
        """Raise DataError with the origin in front."""
        raise DataError(f"{self.origin}: {message}")


def tell(name: str, remarks: tuple[str, ...]) -> None:
    """Warn the caller of a public function of what was not read, or was read in a way that may surprise."""
    for remark in remarks:
        warnings.warn(f"data '{name}': {remark}", DataWarning, stacklevel=3)


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(size in (None, have) for size, have in zip(wanted, shape, strict=True))


def check_expansion(origin: object, what: str, needed: int, held: int) -> None:
    """Refuse a file that would take out of proportion more bytes in memory than it holds.

    Raises:
        DataError: ``needed`` is over 256 MiB and over 500 times ``held``, both in bytes.
    """
    if needed > max(_FREE_BYTES, _MAX_EXPANSION * held):
        raise DataError(
            f"{origin}: {what} would take {needed / 2**30:,.1f} GiB of memory, but the file holds {held:,} bytes for "
            f"it\n  fix: check the sizes in the file; up to {_MAX_EXPANSION} times what it holds is accepted"
        )


def ascending_pairs(edges: Array, num_nodes: int) -> Array:
    """List each undirected edge of ``edges`` [2, E] once, as int64 u < v in ascending order, without self loops."""
    low, high = np.minimum(*edges).astype(np.int64), np.maximum(*edges).astype(np.int64)
    keys = np.unique((low * num_nodes + high)[low != high])
    return np.stack(np.divmod(keys, num_nodes))


def sha256(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive for a block that reads it; whatever is wrong with the archive becomes a DataError.

    Members must be stored or deflated, each of a name of its own, and must not unpack out of proportion.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len({member.filename for member in members}) != len(members):
                raise DataError(f"{path}: holds two members of the same name")
            if any(member.compress_type not in _PACKED or member.flag_bits & 1 for member in members):
                raise DataError(f"{path}: expected stored or deflated members without a password")
            needed = sum(member.file_size for member in members)
            check_expansion(path, "unpacking the archive", needed, path.stat().st_size)
            yield archive
    except DataError:
        raise
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise DataError(f"{path}: truncated or damaged archive ({error}); fetch it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read or unpacked ({error})") from error


def read_npz(path: Path, wanted: Collection[str] | None = None) -> Arrays:
    """Read the numbers and texts of an npz archive: all of them, or only those in ``wanted``.

    Raises:
        DataError: the file cannot be read or is damaged, is not an npz archive, or holds anything but numbers and text.
    """
    with open_zip(path) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        chosen = {name: member for name, member in members.items() if wanted is None or name in wanted}
        arrays = {name: _read_member(path, name, archive, member) for name, member in chosen.items()}
    return Arrays(path, arrays, {path.name: sha256(path)})


def _read_member(path: Path, name: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    def fail(reason: object) -> NoReturn:
        raise DataError(f"{path}: damaged array '{name}' ({reason}); fetch it again")

    with archive.open(member) as stream:
        try:
            version = np.lib.format.read_magic(stream)
            shape, fortran_order, dtype = _HEADERS[version](stream)
        except _BAD_HEADER as error:
            fail(f"no header of npy format 1 or 2: {error}")
        if dtype.hasobject:
            raise DataError(f"{path}: array '{name}' holds Python objects, which are not loaded")
        if dtype.kind not in "biufU":
            raise DataError(f"{path}: array '{name}' has dtype {dtype}, expected numbers, booleans or text")
        size, held = math.prod(shape) * dtype.itemsize, member.file_size - stream.tell()
        plain = all(type(length) is int and length >= 0 for length in shape)  # True is an int, but no length
        if size != held or dtype.itemsize == 0 or not plain:
            fail(f"its header says {list(shape)} of {dtype}, which is {size:,} bytes, but {held:,} follow")
        content = np.empty(size, dtype=np.uint8)
        for start in range(0, size, _BLOCK):
            block = stream.read(min(_BLOCK, size - start))
            content[start : start + len(block)] = np.frombuffer(block, dtype=np.uint8)
            if len(block) < min(_BLOCK, size - start):
                fail("it ends early")
    if dtype.kind == "b" and (content > 1).any():
        fail("a boolean is neither 0 nor 1")
    if dtype.kind == "U":
        code = content.view(np.dtype("u4").newbyteorder(dtype.byteorder))
        if ((code > 0x10FFFF) | ((code >= 0xD800) & (code < 0xE000))).any():
            fail("a character is not Unicode")
    array = content.view(dtype).reshape(shape, order="F" if fortran_order else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)


def read_csv(path: Path, kind: str, missing: bool = False) -> Array:
    """Read a gzip-compressed csv file of numbers without a header as an array [rows, columns].

    ``kind`` is 'integer' (int64) or 'real' (float32); with ``missing``, blank cells are read as NaN.

    Raises:
        DataError: the file is missing or damaged, or a cell is not a number of that kind.
    """
    try:
        packed, blocks = path.stat().st_size, bytearray()
        with gzip.open(path, "rb") as stream:
            while block := stream.read(_BLOCK):
                blocks += block
                check_expansion(path, "unpacking the file", len(blocks), packed)
    except FileNotFoundError as error:
        raise DataError(f"{path}: file not found") from error
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path}: truncated or damaged gzip file ({error}); fetch it again") from error
    text = bytes(blocks).replace(b"\r\n", b"\n").removesuffix(b"\n")
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
    lines = io.TextIOWrapper(io.BytesIO(text), "ascii", newline="\n")
    try:
        return np.loadtxt(lines, dtype=dtype, delimiter=",", comments=None, ndmin=2)
    except ValueError as error:
        raise DataError(f"{path}: expected {kind} numbers separated by commas ({error})") from error
