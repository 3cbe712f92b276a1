"""``libgmoe_runtime`` through ctypes, with the structures of ``gmoe_runtime.h``."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char, c_char_p, c_float, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from gmoe_ext.runtime import library_dir

OK, ARGUMENT, SYSTEM, FORMAT = range(4)


class Error(ctypes.Structure):
    _fields_ = (("text", c_char * 512),)


class Info(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in ("num_bytes", "num_inputs", "num_features", "position_columns")),
        *((name, c_int64) for name in ("position_nodes", "num_classes", "num_layers")),
        ("has_class_names", c_int32),
        ("num_threads", c_int32),
        ("model", c_char_p),
        ("producer", c_char_p),
    )


class Rows(ctypes.Structure):
    _fields_ = (
        ("count", c_int64),
        ("columns", c_int64),
        ("data", POINTER(c_float)),
        ("indptr", POINTER(c_int64)),
        ("indices", POINTER(c_int32)),
        ("nodes", POINTER(c_int64)),
    )


def library() -> ctypes.CDLL:
    found = ctypes.CDLL(str(library_dir() / "libgmoe_runtime.so"))
    found.gmoe_version.restype = c_char_p
    found.gmoe_student_free.restype = None
    return found


def pointer(array: np.ndarray | None, kind: Any) -> Any:
    return None if array is None else array.ctypes.data_as(POINTER(kind))


def rows(
    data: np.ndarray, indptr: np.ndarray | None = None, indices: np.ndarray | None = None, **more: Any
) -> tuple[Rows, list[Any]]:
    """Rows, and the arrays they point into."""
    nodes = more.get("nodes")
    count = len(data) if indptr is None else len(indptr) - 1
    columns = more.get("columns", data.shape[-1])
    x = Rows(
        count, columns, pointer(data, c_float), pointer(indptr, c_int64), pointer(indices, c_int32),
        pointer(nodes, c_int64),
    )  # fmt: skip
    return x, [data, indptr, indices, nodes]


@contextmanager
def loaded(path: Path) -> Iterator[tuple[ctypes.CDLL, c_void_p]]:
    c, student, error = library(), c_void_p(), Error()
    assert c.gmoe_student_load(os.fsencode(path), byref(student), byref(error)) == OK, error.text
    try:
        yield c, student
    finally:
        c.gmoe_student_free(student)
