"""Numbers out of pickles that others wrote (Planetoid's files, OGB's .pt splits), without trusting a byte of them.

NumPy and torch rebuild arrays from whatever a pickle says, object arrays over raw bytes included. Here a pickle builds
plain containers and stand-ins only; an array is made of a stand-in once its dtype is numeric and its size fits its
bytes. What could allocate more than the file holds is refused before the pickle is run.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .arrays import Array, open_zip

# Of protocols 0 to 3, what arrays need; none of these files uses protocol 4.
_OPERATIONS = re.compile(
    "PROTO|STOP|MARK|GLOBAL|REDUCE|BUILD|NEWOBJ|BINPERSID|NONE|NEWTRUE|NEWFALSE|INT|LONG|LONG1|BININT|BININT1|BININT2|"
    "FLOAT|BINFLOAT|STRING|BINSTRING|SHORT_BINSTRING|BINBYTES|SHORT_BINBYTES|UNICODE|BINUNICODE|TUPLE|TUPLE1|TUPLE2|"
    "TUPLE3|EMPTY_TUPLE|LIST|EMPTY_LIST|APPEND|APPENDS|DICT|EMPTY_DICT|SETITEM|SETITEMS|PUT|BINPUT|LONG_BINPUT|GET|"
    "BINGET|LONG_BINGET"
)
_STORAGES = {"torch.LongStorage": "<i8", "torch.IntStorage": "<i4", "torch.FloatStorage": "<f4"}
_STORAGES |= {"torch.DoubleStorage": "<f8"}
_RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_REBUILD = "torch._utils._rebuild_tensor_v2"
_NAMES = {"numpy.ndarray", "numpy.dtype", "collections.defaultdict", "collections.OrderedDict", "builtins.list"}
_NAMES |= {"builtins.object", "builtins.bytes", "copy_reg._reconstructor", "copyreg._reconstructor", "_codecs.encode"}
_NAMES |= {*_STORAGES, *_RECONSTRUCT, _REBUILD}
_DTYPE = re.compile(r"[<>=|]?[iuf][1248]")
_LEGACY_HEADER = [0x1950A86A20F9469CFC6C, 1001]  # of torch.save before torch 1.6


class _Made:
    """Stands in for what a pickle makes by calling ``name``."""

    def __init__(self, name: str, args: tuple[Any, ...]) -> None:
        self.name, self.args = name, args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Csr:
    """Stands in for a SciPy CSR matrix; a class, because a pickle may make it without a call."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Named:
    """A name in a pickle. Calling it makes a plain container or a stand-in."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"'{self.name}' has no state")

    def __call__(self, *args: Any) -> Any:
        if self.name.startswith("collections."):
            return {}
        if self.name == "builtins.bytes" and not args:
            return b""
        if self.name == "_codecs.encode" and args[1:] == ("latin1",):
            return str.encode(args[0], "latin1")
        if self.name.endswith("._reconstructor") and args[0] is _Csr:
            return _Csr()
        return _Made(self.name, args)


class _Storage:
    """The numbers under a torch tensor."""

    def __init__(self, dtype: str, size: int) -> None:
        self.dtype, self.size, self.content = np.dtype(dtype), size, b""

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a storage has no state")


class _Unpickler(pickle.Unpickler):
    """Builds containers, numbers, texts and stand-ins, and refuses any other name in the file."""

    def __init__(self, stream: io.BytesIO, storages: dict[str, _Storage]) -> None:
        super().__init__(stream, encoding="latin1", fix_imports=False)
        self._storages = storages

    def find_class(self, module_name: str, global_name: str) -> Any:
        name = f"{module_name.replace('__builtin__', 'builtins')}.{global_name}"
        if name in ("scipy.sparse.csr.csr_matrix", "scipy.sparse._csr.csr_matrix"):
            return _Csr
        if name not in _NAMES:
            raise pickle.UnpicklingError(f"'{name}' is not allowed")
        return _Named(name)

    def persistent_load(self, pid: Any) -> _Storage:
        what, kind, key, _, size = pid[:5]
        if what != "storage" or not isinstance(kind, _Named):
            raise pickle.UnpicklingError("expected a storage")
        return self._storages.setdefault(str(key), _Storage(_STORAGES[kind.name], size))


def read_pickle(path: Path) -> Any:
    """Read a pickle of one NumPy array, one SciPy CSR matrix (as a dictionary of its attributes) or plain containers.

    Raises:
        DataError: the file cannot be read, is damaged, or holds anything else.
    """
    return _guarded(path, lambda: _finish(_load(path.read_bytes(), 0, {})[0]))


def read_pt(path: Path) -> dict[str, Any]:
    """Read a file of torch.save that holds a dictionary of tensors and NumPy arrays, as NumPy arrays.

    Raises:
        DataError: the file cannot be read, is damaged, or holds anything else.
    """
    held = _guarded(path, lambda: _finish(_load_torch(path)))
    if not isinstance(held, dict) or not all(isinstance(key, str) for key in held):
        raise DataError(f"{path}: expected a dictionary of arrays, got {type(held).__name__}")
    return held


def _guarded(path: Path, read: Callable[[], Any]) -> Any:
    damaged = (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError, OverflowError)
    try:
        return read()
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: file not found") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    except damaged as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{path}: damaged, or holds more than arrays ({reason}); fetch it again") from error


def _load(content: bytes, start: int, storages: dict[str, _Storage]) -> tuple[Any, int]:
    """Check and run the pickle at ``start``; return what it builds and where it ends."""
    stream = io.BytesIO(content)
    stream.seek(start)
    for count, (operation, argument, _) in enumerate(pickletools.genops(stream)):
        if not _OPERATIONS.fullmatch(operation.name):
            raise pickle.UnpicklingError(f"operation {operation.name}")
        if operation.name.endswith("PUT") and not 0 <= int(argument or 0) <= count:
            raise pickle.UnpicklingError(f"memo {argument} of {count} operations")  # would allocate a table that long
    return _Unpickler(io.BytesIO(content[start : stream.tell()]), storages).load(), stream.tell()


def _load_torch(path: Path) -> Any:
    with path.open("rb") as stream:
        is_zip = stream.read(4) == b"PK\3\4"
    return _load_zip(path) if is_zip else _load_legacy(path.read_bytes())


def _load_zip(path: Path) -> Any:
    with open_zip(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in members if name.endswith("/data.pkl"))
    storages: dict[str, _Storage] = {}
    held, _ = _load(members[name], 0, storages)
    for key, storage in storages.items():
        storage.content = members[name.removesuffix("data.pkl") + f"data/{key}"]
    return held


def _load_legacy(content: bytes) -> Any:
    position, storages = 0, dict[str, _Storage]()
    parts = []
    for _ in range(5):  # magic number, version of the format, machine, the object, keys of the storages
        part, position = _load(content, position, storages)
        parts.append(part)
    if parts[:2] != _LEGACY_HEADER or sorted(parts[4]) != sorted(storages):
        raise pickle.UnpicklingError("no file of torch.save")
    for key in parts[4]:
        storage, begin = storages[key], position + 8
        position = begin + storage.size * storage.dtype.itemsize
        storage.content = content[begin:position]
    return parts[3]


def _finish(held: Any) -> Any:
    """Make arrays of the stand-ins; one level deep, because none of the files nests arrays deeper."""
    attributes = held.state if isinstance(held, _Csr) else held
    if isinstance(attributes, dict):
        return {key: _array(value) if isinstance(value, _Made) else value for key, value in attributes.items()}
    return _array(held) if isinstance(held, _Made) else held


def _array(made: _Made) -> Array:
    if made.name in _RECONSTRUCT:
        _, shape, dtype, fortran_order, content = made.state
        content = content.encode("latin1") if isinstance(content, str) else content
        return _numbers(_dtype(dtype), content, shape).reshape(shape, order="F" if fortran_order else "C")
    if made.name != _REBUILD:
        raise pickle.UnpicklingError(f"'{made.name}' in place of an array")
    storage, offset, shape, strides = made.args[:4]
    flat = _numbers(storage.dtype, storage.content, (storage.size,))
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if min((offset, *shape, *strides)) < 0 or (math.prod(shape) and last >= len(flat)) or math.prod(shape) > len(flat):
        raise pickle.UnpicklingError(f"a tensor {shape} at {offset} of {len(flat)} numbers")
    bytes_between = [stride * flat.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(flat[offset:], shape, bytes_between).copy()


def _dtype(made: Any) -> np.dtype[Any]:
    # The state is (3, byte order, None, None, None, -1, -1, 0) for every plain number.
    if not isinstance(made, _Made) or made.name != "numpy.dtype" or not _DTYPE.fullmatch(made.args[0]):
        raise pickle.UnpicklingError("an array of other than numbers")
    plain: np.dtype[Any] = np.dtype(made.args[0])
    return plain.newbyteorder((made.state or (3, "="))[1])


def _numbers(dtype: np.dtype[Any], content: bytes, shape: tuple[int, ...]) -> Array:
    if min(shape, default=0) < 0 or len(content) != math.prod(shape) * dtype.itemsize:
        raise pickle.UnpicklingError(f"{len(content)} bytes for an array {shape} of {dtype}")
    return np.frombuffer(content, dtype).astype(dtype.newbyteorder("="))
