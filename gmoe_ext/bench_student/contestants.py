"""The contestants: a packed student, the same student elsewhere, a plain MLP of one expert's size, the teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import GmoeError, MissingExtraError
from ..export import load_onnx
from ..export.fold import FoldedLayer, FoldedStudent
from ..export.graphs import PlainStudent, write_onnx
from ..export.pack import unpack
from ..timing import Ask
from .subject import Requests, Subject

PACKED, TORCH, ONNX = "packed student", "student, PyTorch", "student, ONNX Runtime"
MLP_TORCH, MLP_ONNX, TEACHER = "MLP, PyTorch", "MLP, ONNX Runtime", "teacher"
EXPLAINED = {
    PACKED: "`gmoe_ext.runtime.PackedStudent`, the file as it is",
    TORCH: "the same matrices in plain PyTorch, all experts computed (what `--format pt2` exports)",
    ONNX: "the same as an ONNX graph (what `--format onnx` exports)",
    MLP_TORCH: "the student's first experts without routers: a plain MLP of its widths, one expert each",
    MLP_ONNX: "the same as an ONNX graph",
}
TOLERANCE = 1e-3  # of the largest logit
MOST_TIES = 0.01  # of the rows of a request may differ by more

Predict = Callable[..., NDArray[np.float32]]  # of x, and of nodes where requests have them
Answer = Callable[[int], NDArray[np.float32]]


@dataclass(frozen=True)
class Contestants:
    """Contestants that are ready to answer.

    Attributes:
        asks: by name, in the order of the report.
        absent: name -> why it cannot take part.
    """

    asks: dict[str, Ask]
    absent: dict[str, str]


def line_up(subject: Subject, requests: Requests, threads: int, scratch: Path) -> Contestants:
    """Set up every contestant that can answer here with so many threads, and compare their answers.

    Raises:
        GmoeError: two forms of one model give different answers.
    """
    torch.set_num_threads(threads)
    subject.packed.num_threads = threads
    student = unpack(subject.path)
    single = without_experts(student)
    makers: dict[str, Callable[[], Predict]] = {
        PACKED: lambda: subject.packed.predict,
        TORCH: lambda: _torch(student),
        ONNX: lambda: _onnx(student, threads, scratch / "student.onnx"),
        MLP_TORCH: lambda: _torch(single),
        MLP_ONNX: lambda: _onnx(single, threads, scratch / "mlp.onnx"),
    }
    answers: dict[str, Answer] = {}
    absent: dict[str, str] = {}
    for name, make in makers.items():
        try:
            answers[name] = _answers(make(), requests)
        except MissingExtraError as error:
            absent[name] = str(error)
    _check(answers, (PACKED, TORCH, ONNX))
    _check(answers, (MLP_TORCH, MLP_ONNX))
    asks: dict[str, Ask] = dict(answers)
    server, ids = subject.teacher, requests.ids
    if server is None or ids is None:
        absent[TEACHER] = "the run of this file is unknown: pass --run RUN_DIR"
    else:
        asks[TEACHER] = lambda i: server.answer(ids[i % len(ids)])
    return Contestants(asks, absent)


def without_experts(student: FoldedStudent) -> FoldedStudent:
    """Keep only the first experts of its first member."""
    layers = [FoldedLayer(one.weight_EDF[:1], one.bias_EF[:1], None, 1, one.relu) for one in student.members[0]]
    return replace(student, name="mlp", members=[layers])


def _answers(predict: Predict, requests: Requests) -> Answer:
    inputs = [requests.x] if requests.nodes is None else [requests.x, requests.nodes]
    asked = list(zip(*inputs, strict=True))
    return lambda i: predict(*asked[i % len(asked)])


def _torch(student: FoldedStudent) -> Predict:
    plain = PlainStudent(student).eval()

    @torch.inference_mode()
    def predict(*inputs: NDArray[Any]) -> NDArray[np.float32]:
        logits: Tensor = plain(*map(torch.from_numpy, inputs))
        return logits.numpy()

    return predict


def _onnx(student: FoldedStudent, threads: int, path: Path) -> Predict:
    if not path.exists():
        write_onnx(student, path)
    return load_onnx(path, threads).predict


def _check(answers: dict[str, Answer], names: tuple[str, ...]) -> None:
    """The named contestants that are present must agree on the first request, up to a few rows with near ties."""
    present = [name for name in names if name in answers]
    expected = answers[present[0]](0)
    bound = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    for name in present[1:]:
        differs = np.abs(answers[name](0) - expected).max(axis=1) > bound
        if differs.sum() > MOST_TIES * len(differs):
            raise GmoeError(
                f"'{name}' gives other answers than '{present[0]}' on {differs.sum()} of {len(differs)} rows"
            )
