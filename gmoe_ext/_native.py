"""Find and load the compiled operators.

``available`` is decided once, when this module is first imported. Without the library the operators run on
``gmoe_ext.reference``: one warning says so, ``backend()`` tells, and ``GMOE_EXT_REQUIRE_NATIVE=1`` makes it an error.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from .errors import GraphIndexError, NativeError

_BUILD = "pip install --no-build-isolation --force-reinstall --no-deps ."
_BUILD_CUDA = f"on a machine with nvcc, with a torch that has CUDA: GMOE_CUDA=ON {_BUILD}"


def _load(module: str = "_C", build: str = _BUILD) -> ModuleType:
    """Import a compiled module of the package, or say why that is impossible and what to do about it."""
    python = sys.version.split()[0]
    if find_spec(f"gmoe_ext.{module}") is None:
        others = sorted(path.name for path in Path(__file__).parent.glob(f"{module}.*.so"))
        reason = f"; there is {', '.join(others)}, which is for another Python" if others else ""
        raise NativeError(
            f"gmoe_ext: the compiled module {module} is not built for Python {python}{reason}\n  fix: {build}"
        )
    try:
        return importlib.import_module(f"gmoe_ext.{module}")
    except ImportError as error:
        lacking = re.match(r"(\S+): cannot open shared object file", str(error))
        fix = f"rebuild it in this environment: {build}"
        if lacking:
            fix = f"install what provides {lacking[1]}, or add its directory to LD_LIBRARY_PATH; otherwise {fix}"
        raise NativeError(
            f"gmoe_ext: the compiled module {module} does not load with Python {python} and torch {torch.__version__}: "
            f"{error}\n  fix: {fix}"
        ) from error


def _load_or_fall_back() -> ModuleType | None:
    if os.environ.get("GMOE_EXT_BACKEND") == "reference":
        return None
    try:
        return _load()
    except NativeError as error:
        if os.environ.get("GMOE_EXT_REQUIRE_NATIVE", "") not in {"", "0"}:
            raise
        warnings.warn(f"{error}\n  until then the slow pure-PyTorch reference is used", RuntimeWarning, stacklevel=2)
        return None


def _load_cuda() -> tuple[ModuleType | None, str]:
    # Loading the kernels starts no device.
    if torch.version.cuda is None:
        return None, f"gmoe_ext: this torch ({torch.__version__}) has no CUDA\n  fix: {_BUILD_CUDA}"
    try:
        return _load("_cuda", _BUILD_CUDA), ""
    except NativeError as error:
        return None, str(error)


_library = _load_or_fall_back()
_cuda, _no_cuda = _load_cuda() if _library is not None else (None, "gmoe_ext runs on the reference")

available: bool = _library is not None


def backend() -> str:
    """Tell what the operators run on: ``"native"`` (compiled) or ``"reference"`` (pure PyTorch).

    ``GMOE_EXT_BACKEND=reference`` selects the reference on purpose, for instance to check a result.
    """
    return "native" if available else "reference"


def build_info() -> dict[str, Any]:
    """Describe the compiled library: its version, the torch and compiler that built it, the active instruction set.

    ``cuda`` is the CUDA version that built the kernels for CUDA tensors, or False if they are not loaded.

    Raises:
        NativeError: the library is not built or does not load.
    """
    library = _library if _library is not None else _load()
    info: dict[str, Any] = {"cuda": False, **library.build_info()}
    return {**info, **_cuda.build_info()} if _cuda is not None else info


def why_no_cuda() -> str | None:
    """Say why there are no operators for CUDA tensors and how to get them; None if there are."""
    return None if _cuda is not None else _no_cuda


def expect_cuda(name: str, operands: tuple[Any, ...]) -> None:
    """Raise ``NativeError`` if an operator got CUDA tensors but has no kernels for them."""
    if _cuda is None and any(isinstance(operand, torch.Tensor) and operand.is_cuda for operand in operands):
        raise NativeError(f"gmoe::{name}: got tensors on CUDA, but {_no_cuda}\n  or move the tensors to the CPU")


def raise_index_faults(device: torch.device) -> None:
    """Raise an error for a bad index that an operator recorded on a CUDA device.

    Operators on CUDA skip a bad index and record its position; the next operator raises. Call this where the device
    has been waited for anyway, such as at the end of an epoch, so that no bad index goes unnoticed. It does not wait.

    Raises:
        GraphIndexError: a bad index, without its value.
        RuntimeError: offsets or a plan that no operator of this package makes.
    """
    raise_noted = getattr(_cuda if device.type == "cuda" else _library, "raise_index_faults", None)
    if raise_noted is None:  # on the CPU, operators raise at once
        return
    index = torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index
    try:
        raise_noted(-1 if index is None else index)
    except RuntimeError as error:
        bad_index = GraphIndexError.of_native(error)
        if bad_index is None:
            raise
        raise bad_index from None
