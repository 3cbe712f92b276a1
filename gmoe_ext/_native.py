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

from .errors import NativeError

_NOT_BUILT = (
    "gmoe_ext: the compiled operators are not built for Python {python}.\n"
    "  mend: pip install --no-build-isolation . (in the source tree: python setup.py build_ext --inplace)"
)
_DOES_NOT_LOAD = (
    "gmoe_ext: the compiled operators do not load in this environment (torch {torch}, Python {python}): {reason}\n"
    "  mend: build them again here: pip install --no-build-isolation --force-reinstall --no-deps ."
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


_library = _load_or_fall_back()

available: bool = _library is not None


def backend() -> str:
    """What the operators run on: ``"native"`` (compiled) or ``"reference"`` (pure PyTorch).

    ``GMOE_EXT_BACKEND=reference`` chooses the reference on purpose, for instance to check a result.
    """
    return "native" if available else "reference"


def build_info() -> dict[str, Any]:
    """Facts about the compiled library: version, torch and compiler it was built with, active instruction set.

    Raises:
        NativeError: the library is not built or does not load here.
    """
    library = _library if _library is not None else _load()
    info: dict[str, Any] = library.build_info()
    return info


def num_threads() -> int:
    """Threads the CPU operators use: ``torch.get_num_threads()``."""
    return torch.get_num_threads()
