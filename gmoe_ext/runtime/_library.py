"""Loads the compiled serving library, or says why it cannot."""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from ..errors import NativeError

_MEND = "pip install --no-build-isolation . (in the source tree: python setup.py build_ext --inplace)"


def load() -> ModuleType:
    """The module ``gmoe_ext._runtime``.

    Raises:
        NativeError: it is not built for this Python, or does not load.
    """
    python = sys.version.split()[0]
    if find_spec("gmoe_ext._runtime") is None:
        raise NativeError(f"gmoe_ext.runtime: the serving library is not built for Python {python}.\n  mend: {_MEND}")
    try:
        return importlib.import_module("gmoe_ext._runtime")
    except ImportError as error:
        raise NativeError(
            f"gmoe_ext.runtime: the serving library does not load under Python {python}: {error}\n"
            f"  mend: build it again here: {_MEND}"
        ) from error


library = load()


def include_dir() -> Path:
    """Directory of ``gmoe_runtime.h``, the C interface of packed students."""
    return _installed("include/gmoe_runtime.h").parent


def library_dir() -> Path:
    """Directory of ``libgmoe_runtime.so``, the library behind ``gmoe_runtime.h``."""
    return _installed("libgmoe_runtime.so").parent


def _installed(name: str) -> Path:
    path = Path(__file__).resolve().parents[1] / name
    if not path.is_file():
        raise NativeError(f"gmoe_ext.runtime: {path.name} is not built: expected {path}\n  mend: {_MEND}")
    return path
