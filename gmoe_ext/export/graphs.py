"""Students as graphs for other runtimes: ONNX, and PyTorch's own archive (.pt2).

The graph is that of :class:`PlainStudent`; the file also contains the document of a packed file.

N rows, E experts, K chosen, D in, F out, H columns in which rows are compared with memories, C classes, M members.
"""

from __future__ import annotations

import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import extras
from ..atomic_write import atomic_write
from ..errors import DataError
from ..models.registry import Model
from .fold import EPS, Content, FoldedLayer, FoldedRouter, FoldedStudent, finite, fold
from .pack import METADATA_KEY, describe

OPSET = 18
_EXAMPLE_ROWS = 2  # an exporter would treat a dimension of 1 as constant
_NODES = "nodes"

Answer = Callable[[NDArray[np.float32], NDArray[np.int64] | None], NDArray[np.float32]]


class PlainRouter(nn.Module):
    """Compute the gates [N, E] of rows [N, D], zero for experts that are not chosen."""

    memory: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, router: FoldedRouter, k: int, name: str) -> None:
        super().__init__()
        self.k, self.over_all, self.projected = k, router.over_all, router.projection is not None
        self.register_buffer("memory", finite(router.memory_EH.mT.float(), f"{name}.memory"))
        if router.projection is not None:
            weight_1DH, bias_1H = router.projection
            self.register_buffer("weight", finite(weight_1DH[0].float(), f"{name}.router.weight"))
            self.register_buffer("bias", finite(bias_1H[0].float(), f"{name}.router.bias"))

    def forward(self, x_ND: Tensor) -> Tensor:
        x_NH = torch.addmm(self.bias, x_ND, self.weight) if self.projected else x_ND
        unit_NH = x_NH / x_NH.norm(dim=1, keepdim=True).clamp_min(EPS)
        score_NE = unit_NH @ self.memory
        top_NK, index_NK = score_NE.topk(self.k, dim=1)
        gate_NK = score_NE.softmax(1).gather(1, index_NK) if self.over_all else top_NK.softmax(1)
        return torch.zeros_like(score_NE).scatter(1, index_NK, gate_NK)


class PlainLayer(nn.Module):
    """Compute y = act(sum_e gate_e (x W_e + b_e)) with all experts, those not chosen having gate 0.

    One product with all experts' matrices side by side: a batch is not sorted by expert, at E / k times the work.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: FoldedLayer, name: str) -> None:
        super().__init__()
        self.experts, width_in, self.width_out = layer.weight_EDF.shape
        self.relu = layer.relu
        self.router = None if layer.router is None else PlainRouter(layer.router, layer.k, name)
        side_by_side = layer.weight_EDF.permute(1, 0, 2).reshape(width_in, -1)
        self.register_buffer("weight", finite(side_by_side.float(), f"{name}.weight"))
        self.register_buffer("bias", finite(layer.bias_EF.flatten().float(), f"{name}.bias"))

    def forward(self, x_ND: Tensor) -> Tensor:
        y_NF = torch.addmm(self.bias, x_ND, self.weight)
        if self.router is not None:
            y_NEF = y_NF.reshape(-1, self.experts, self.width_out)
            y_NF = torch.matmul(self.router(x_ND).unsqueeze(1), y_NEF).squeeze(1)
        return y_NF.relu() if self.relu else y_NF


class PlainStudent(nn.Module):
    """A folded student in plain PyTorch, of operators that every exporter knows.

    With a position table it is called as forward(x [N, features], nodes [N] int64), node -1 having zeros for a
    position; without one as forward(x [N, features and position]).
    """

    positions: Tensor

    def __init__(self, student: FoldedStudent) -> None:
        super().__init__()
        self.features, self.normalize = student.num_features, student.normalize
        self.num_inputs, self.table_rows = student.num_inputs, 0
        if student.positions is not None:
            self.table_rows = len(student.positions)
            # The extra last row is for nodes without a position.
            table = torch.cat([student.positions, student.positions.new_zeros(1, student.position_dim)])
            self.register_buffer("positions", finite(table, "positions"))
        layers = [PlainLayer(layer, f"layers.{i}") for i, layer in enumerate(student.layers)]
        depth = len(student.members[0])
        self.members = nn.ModuleList(nn.Sequential(*layers[i : i + depth]) for i in range(0, len(layers), depth))

    @property
    def has_table(self) -> bool:
        """Whether ``nodes`` is an input."""
        return self.table_rows > 0

    def forward(self, x: Tensor, nodes: Tensor | None = None) -> Tensor:
        x = self._prepared(x)
        if nodes is not None:
            row_N = torch.where(nodes < 0, self.table_rows, nodes)
            x = torch.cat([x, self.positions[row_N]], 1)
        if len(self.members) == 1:
            logits: Tensor = self.members[0](x)
            return logits
        votes_MNC = torch.stack([member(x).log_softmax(1) for member in self.members])
        return votes_MNC.logsumexp(0) - math.log(len(self.members))

    def _prepared(self, x: Tensor) -> Tensor:
        if self.normalize == "none" or self.features == 0:
            return x
        features, rest = x[:, : self.features], x[:, self.features :]
        order = 1 if self.normalize == "row_l1" else 2
        features = features / features.norm(p=order, dim=1, keepdim=True).clamp_min(EPS)
        return features if self.has_table or self.features == self.num_inputs else torch.cat([features, rest], 1)


class ExportedStudent:
    """An exported student, loaded in the runtime it was exported for.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path, document: dict[str, Any], answer: Answer) -> None:
        self.path, self._document, self._answer = path, document, answer

    def info(self) -> dict[str, Any]:
        """Return the document of ``docs/reference/runtime_format.md``: classes, features, layers."""
        return self._document

    def predict(self, x: NDArray[Any], nodes: NDArray[Any] | None = None) -> NDArray[np.float32]:
        """Compute the logits [N, C] of rows x [N, D]; ``nodes`` are their rows of the position table, -1 for none."""
        places = None if nodes is None else np.ascontiguousarray(nodes, np.int64)
        return self._answer(np.ascontiguousarray(x, np.float32), places)


def save_onnx(model: Model, path: str | os.PathLike[str], **content: Unpack[Content]) -> Path:
    """Write a student as an ONNX graph, opset 18: input ``x`` (and ``nodes``), output ``logits``, any number of rows.

    The graph computes all experts for every row and gives gate 0 to those not chosen: it has no cheaper way for a
    batch.
    Arguments, result and errors are those of :func:`gmoe_ext.export.pack`.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.

    Examples:
        >>> save_onnx(student, "student.onnx", class_names=["a", "b"])
        >>> onnxruntime.InferenceSession("student.onnx").run(["logits"], {"x": x})
    """
    return write_onnx(fold(model, **content), path)


def save_pt2(model: Model, path: str | os.PathLike[str], **content: Unpack[Content]) -> Path:
    """Write a student as an archive of ``torch.export``, for programs that have torch but not gmoe_ext, including C++.

    Arguments, result and errors are those of :func:`gmoe_ext.export.pack`.

    Examples:
        >>> save_pt2(student, "student.pt2")
        >>> torch.export.load("student.pt2").module()(x)
    """
    student = fold(model, **content)
    plain, inputs = _plain(student)
    rows = torch.export.Dim("rows", min=1)
    with _quiet():
        program = torch.export.export(plain, tuple(inputs.values()), dynamic_shapes=tuple({0: rows} for _ in inputs))
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack"):
            node.meta.pop(key, None)
    target = Path(path)
    with atomic_write(target) as draft, draft.open("xb") as file, _quiet():
        torch.export.save(program, file, extra_files={METADATA_KEY: json.dumps(describe(student))})
    return target


def write_onnx(student: FoldedStudent, path: str | os.PathLike[str]) -> Path:
    """Write a folded student as :func:`save_onnx` does."""
    for package in ("onnx", "onnxscript"):
        extras.load(package)
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
        part.metadata_props.clear()  # paths and source lines of the exporting machine
    graph.metadata_props.clear()
    graph.metadata_props[METADATA_KEY] = json.dumps(describe(student))
    target = Path(path)
    with atomic_write(target) as draft:
        program.save(str(draft), external_data=False)
    return target


def load_onnx(path: str | os.PathLike[str], threads: int = 1) -> ExportedStudent:
    """Load a file of :func:`save_onnx` in ONNX Runtime, on the CPU.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        DataError: the file is not an exported student.
    """
    runtime = extras.load("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    with _foreign(path):
        session = runtime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    document = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)

    def answer(x: NDArray[np.float32], nodes: NDArray[np.int64] | None) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = session.run(["logits"], {"x": x} if nodes is None else {"x": x, _NODES: nodes})[0]
        return logits

    return ExportedStudent(Path(path), _document(path, document), answer)


def load_pt2(path: str | os.PathLike[str]) -> ExportedStudent:
    """Load a file of :func:`save_pt2` in torch, which must not unpickle anything but tensors from it.

    Raises:
        DataError: the file is not an exported student.
    """
    files = {METADATA_KEY: ""}
    with _foreign(path), open(path, "rb") as file:
        module = torch.export.load(file, extra_files=files).module()

    @torch.inference_mode()
    def answer(x: NDArray[np.float32], nodes: NDArray[np.int64] | None) -> NDArray[np.float32]:
        inputs = (x,) if nodes is None else (x, nodes)
        logits: NDArray[np.float32] = module(*(torch.from_numpy(one) for one in inputs)).numpy()
        return logits

    return ExportedStudent(Path(path), _document(path, files[METADATA_KEY]), answer)


def _plain(student: FoldedStudent) -> tuple[PlainStudent, dict[str, Tensor]]:
    """Return what is exported and example inputs."""
    plain = PlainStudent(student).eval()
    if not plain.has_table:
        return plain, {"x": torch.ones(_EXAMPLE_ROWS, plain.num_inputs)}
    nodes = torch.zeros(_EXAMPLE_ROWS, dtype=torch.int64)
    return plain, {"x": torch.ones(_EXAMPLE_ROWS, plain.features), _NODES: nodes}


def _document(path: str | os.PathLike[str], text: str | None) -> dict[str, Any]:
    if not text:
        raise DataError(f"{os.fspath(path)}: expected a student exported by gmoe_ext, but it has no '{METADATA_KEY}'")
    document: dict[str, Any] = json.loads(text)
    return document


@contextmanager
def _foreign(path: str | os.PathLike[str]) -> Iterator[None]:
    """Read a file with another library's reader, whatever it raises.

    torch.export falls back to ``torch.load(weights_only=False)``, which would run a file's code, unless told not to.
    """
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        with _quiet():
            yield
    except OSError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(f"{os.fspath(path)}: expected a student exported by gmoe_ext: {reason}") from error
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' warnings about optional libraries and about their own names and calls."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module="torch.onnx")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
