"""Students as graphs of other runtimes: ONNX and PyTorch's own archive (.pt2).

What is written is :class:`PlainStudent`; beside the graph stands the document that a packed file has, too.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError, MissingExtraError
from ..models.registry import Model
from .draft import draft
from .fold import Content, FoldedStudent, fold
from .pack import METADATA_KEY, describe
from .plain import PlainStudent

OPSET = 18
_EXAMPLE_ROWS = 2  # an exporter would take a dimension of 1 for a constant
_NODES = "nodes"

Answer = Callable[[NDArray[np.float32], NDArray[np.int64] | None], NDArray[np.float32]]


class ExportedStudent:
    """A student that was exported, loaded by the runtime it was exported for.

    Attributes:
        path: its file.
    """

    def __init__(self, path: Path, document: dict[str, Any], answer: Answer) -> None:
        self.path, self._document, self._answer = path, document, answer

    def info(self) -> dict[str, Any]:
        """The document of the packed format (``docs/reference/runtime_format.md``): classes, features, layers."""
        return self._document

    def predict(self, x: NDArray[Any], nodes: NDArray[Any] | None = None) -> NDArray[np.float32]:
        """Logits [N, C] of rows x [N, D]; with a position table also the table's row of each, -1 for none."""
        places = None if nodes is None else np.ascontiguousarray(nodes, np.int64)
        return self._answer(np.ascontiguousarray(x, np.float32), places)


def save_onnx(model: Model, path: str | os.PathLike[str], **content: Unpack[Content]) -> Path:
    """Write a student as an ONNX graph, opset 18: input ``x`` (and ``nodes``), output ``logits``, any number of rows.

    All experts are computed for every row, and those not chosen have gate 0: a graph has no cheaper way for a batch.
    Arguments, result and errors are those of :func:`gmoe_ext.export.pack`.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.

    Example:
        >>> save_onnx(student, "student.onnx", class_names=["a", "b"])
        >>> onnxruntime.InferenceSession("student.onnx").run(["logits"], {"x": x})
    """
    return write_onnx(fold(model, **content), path)


def save_pt2(model: Model, path: str | os.PathLike[str], **content: Unpack[Content]) -> Path:
    """Write a student as an archive of ``torch.export``, for programs with torch and without gmoe_ext, C++ among them.

    Arguments, result and errors are those of :func:`gmoe_ext.export.pack`.

    Example:
        >>> save_pt2(student, "student.pt2")
        >>> torch.export.load("student.pt2").module()(x)
    """
    return write_pt2(fold(model, **content), path)


def write_onnx(student: FoldedStudent, path: str | os.PathLike[str]) -> Path:
    """:func:`save_onnx` of a student that is folded."""
    for package in ("onnx", "onnxscript"):
        extra(package, "export as ONNX")
    plain, inputs = _plain(student)
    with _quiet():
        program = torch.onnx.export(
            plain,
            tuple(inputs.values()),
            dynamo=True,
            input_names=list(inputs),
            output_names=["logits"],
            dynamic_shapes=tuple({0: "rows"} for _ in inputs),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    graph = program.model
    for part in (*graph.graph, *graph.graph.inputs, *graph.graph.outputs, *graph.graph.initializers.values()):
        part.metadata_props.clear()  # paths and lines of the exporting machine
    graph.metadata_props.clear()
    graph.metadata_props[METADATA_KEY] = json.dumps(describe(student))
    target = Path(path)
    with draft(target) as unfinished:
        program.save(str(unfinished), external_data=False)
    return target


def write_pt2(student: FoldedStudent, path: str | os.PathLike[str]) -> Path:
    """:func:`save_pt2` of a student that is folded."""
    plain, inputs = _plain(student)
    rows = torch.export.Dim("rows", min=1)
    with _quiet():
        program = torch.export.export(plain, tuple(inputs.values()), dynamic_shapes=tuple({0: rows} for _ in inputs))
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack"):
            node.meta.pop(key, None)
    target = Path(path)
    with draft(target) as unfinished, unfinished.open("xb") as file, _quiet():
        torch.export.save(program, file, extra_files={METADATA_KEY: json.dumps(describe(student))})
    return target


def load_onnx(path: str | os.PathLike[str], threads: int = 1) -> ExportedStudent:
    """A file of :func:`save_onnx` in ONNX Runtime, on the CPU.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        DataError: the file is no exported student.
    """
    runtime = extra("onnxruntime", "answering with an ONNX graph")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    document = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)

    def answer(x: NDArray[np.float32], nodes: NDArray[np.int64] | None) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = session.run(["logits"], {"x": x} if nodes is None else {"x": x, _NODES: nodes})[0]
        return logits

    return ExportedStudent(Path(path), _document(path, document), answer)


def load_pt2(path: str | os.PathLike[str]) -> ExportedStudent:
    """A file of :func:`save_pt2`, answered by torch.

    Raises:
        DataError: the file is no exported student.
    """
    files = {METADATA_KEY: ""}
    with _quiet():
        module = torch.export.load(os.fspath(path), extra_files=files).module()

    @torch.inference_mode()
    def answer(x: NDArray[np.float32], nodes: NDArray[np.int64] | None) -> NDArray[np.float32]:
        inputs = (x,) if nodes is None else (x, nodes)
        logits: NDArray[np.float32] = module(*(torch.from_numpy(one) for one in inputs)).numpy()
        return logits

    return ExportedStudent(Path(path), _document(path, files[METADATA_KEY]), answer)


def extra(package: str, purpose: str) -> Any:
    """Import one of the libraries of the extra `onnx`.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(package, "onnx", purpose) from error


def _plain(student: FoldedStudent) -> tuple[PlainStudent, dict[str, Tensor]]:
    """What is exported, and inputs of it."""
    plain = PlainStudent(student).eval()
    if not plain.has_table:
        return plain, {"x": torch.ones(_EXAMPLE_ROWS, plain.num_inputs)}
    nodes = torch.zeros(_EXAMPLE_ROWS, dtype=torch.int64)
    return plain, {"x": torch.ones(_EXAMPLE_ROWS, plain.features), _NODES: nodes}


def _document(path: str | os.PathLike[str], text: str | None) -> dict[str, Any]:
    if not text:
        raise DataError(f"{os.fspath(path)}: expected a student exported by gmoe_ext, found no '{METADATA_KEY}' in it")
    document: dict[str, Any] = json.loads(text)
    return document


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters warn of libraries they would know operators of, and of names and calls of their own."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module="torch.onnx")
            yield
    finally:
        logger.setLevel(level)
