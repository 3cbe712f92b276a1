"""Finds and loads the compiled operators.

``available`` is decided once, when this module is first imported. Without the library the operators run on
``gmoe_ext.reference``: one warning says so, ``backend()`` tells, and ``GMOE_EXT_REQUIRE_NATIVE=1`` makes it an error.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch

from .errors import GraphIndexError, NativeError

_NOT_BUILT = (
    "gmoe_ext: the compiled operators are not built for Python {python}.\n"
    "  mend: pip install --no-build-isolation . (in the source tree: python setup.py build_ext --inplace)"
)
_DOES_NOT_LOAD = (
    "gmoe_ext: the compiled operators do not load in this environment (torch {torch}, Python {python}): {reason}\n"
    "  mend: build them again here: pip install --no-build-isolation --force-reinstall --no-deps ."
)
_NO_CUDA = (
    "gmoe::{name}: got tensors on CUDA, and {reason}\n"
    "  mend: build on a machine with nvcc, beside a torch with CUDA:"
    " GMOE_CUDA=ON pip install --no-build-isolation --force-reinstall --no-deps .\n"
    "  or move the tensors to the CPU"
)


def _load() -> ModuleType:
    python = sys.version.split()[0]
    if find_spec("gmoe_ext._C") is None:
        raise NativeError(_NOT_BUILT.format(python=python))
    try:
        return importlib.import_module("gmoe_ext._C")
    except ImportError as error:
        raise NativeError(_DOES_NOT_LOAD.format(torch=torch.__version__, python=python, reason=error)) from error


def _required() -> bool:
    return os.environ.get("GMOE_EXT_REQUIRE_NATIVE", "") not in {"", "0"}


def _load_or_fall_back() -> ModuleType | None:
    if os.environ.get("GMOE_EXT_BACKEND") == "reference":
        return None
    try:
        return _load()
    except NativeError as error:
        if _required():
            raise
        warnings.warn(f"{error}\n  until then the slow pure-PyTorch reference is used", RuntimeWarning, stacklevel=2)
        return None


def _load_cuda() -> tuple[ModuleType | None, str]:
    """The kernels for CUDA tensors, or why there are none. Loading them starts no device."""
    if torch.version.cuda is None:
        return None, "this torch has no CUDA"
    if find_spec("gmoe_ext._cuda") is None:
        return None, "gmoe_ext was built without its CUDA kernels"
    try:
        return importlib.import_module("gmoe_ext._cuda"), ""
    except ImportError as error:
        return None, f"gmoe_ext's CUDA kernels do not load beside torch {torch.__version__}: {error}"


_library = _load_or_fall_back()
_cuda, _no_cuda = _load_cuda() if _library is not None else (None, "gmoe_ext runs on the reference")

available: bool = _library is not None


def backend() -> str:
    """What the operators run on: ``"native"`` (compiled) or ``"reference"`` (pure PyTorch).

    ``GMOE_EXT_BACKEND=reference`` chooses the reference on purpose, for instance to check a result.
    """
    return "native" if available else "reference"


def build_info() -> dict[str, Any]:
    """Facts about the compiled library: version, torch and compiler it was built with, active instruction set.

    ``cuda`` is the version of CUDA that the kernels for CUDA tensors were built with, False where they are not loaded.

    Raises:
        NativeError: the library is not built or does not load here.
    """
    library = _library if _library is not None else _load()
    info: dict[str, Any] = {"cuda": False, **library.build_info()}
    return {**info, **_cuda.build_info()} if _cuda is not None else info


def expect_cuda(name: str, operands: tuple[Any, ...]) -> None:
    """Raise :class:`NativeError` where an operator got CUDA tensors and has no kernels for them."""
    if _cuda is None and any(isinstance(operand, torch.Tensor) and operand.is_cuda for operand in operands):
        raise NativeError(_NO_CUDA.format(name=name, reason=_no_cuda))


def raise_index_faults(device: torch.device) -> None:
    """Raise for a bad index that an operator has noted on a CUDA device.

    Operators there leave a bad index out and note its position; the next one raises. Who has waited for the device
    anyway, at the end of an epoch, calls this, so that no index goes unnoticed. It waits for nothing itself.

    Raises:
        GraphIndexError: without a value.
        RuntimeError: offsets or a plan that no operator of this package makes.
    """
    raise_noted = getattr(_cuda if device.type == "cuda" else _library, "raise_index_faults", None)
    if raise_noted is None:  # of the CPU, where operators raise at once
        return
    index = torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index
    try:
        raise_noted(-1 if index is None else index)
    except RuntimeError as error:
        bad_index = GraphIndexError.of_native(error)
        if bad_index is None:
            raise
        raise bad_index from None


def num_threads() -> int:
    """Threads the CPU operators use: ``torch.get_num_threads()``."""
    return torch.get_num_threads()
