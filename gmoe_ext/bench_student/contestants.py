"""The contestants: a packed student, the same student elsewhere, a plain MLP of one expert's size, the teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

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

Answer = Callable[[int], NDArray[np.float32]]
Make = Callable[[Requests], Answer]


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
    makers: dict[str, Make] = {
        PACKED: lambda r: _packed(subject, r),
        TORCH: lambda r: _torch(student, r),
        ONNX: lambda r: _onnx(student, r, threads, scratch / "student.onnx"),
        MLP_TORCH: lambda r: _torch(single, r),
        MLP_ONNX: lambda r: _onnx(single, r, threads, scratch / "mlp.onnx"),
    }
    answers: dict[str, Answer] = {}
    absent: dict[str, str] = {}
    for name, make in makers.items():
        try:
            answers[name] = make(requests)
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


def _packed(subject: Subject, requests: Requests) -> Answer:
    x, nodes, predict = requests.x, requests.nodes, subject.packed.predict
    if nodes is None:
        return lambda i: predict(x[i % len(x)])
    return lambda i: predict(x[i % len(x)], nodes[i % len(x)])


def _torch(student: FoldedStudent, requests: Requests) -> Answer:
    plain, inputs = PlainStudent(student).eval(), [torch.from_numpy(requests.x)]
    if requests.nodes is not None:
        inputs.append(torch.from_numpy(requests.nodes))
    count = len(requests.x)

    @torch.inference_mode()
    def answer(i: int) -> NDArray[np.float32]:
        logits: Tensor = plain(*(one[i % count] for one in inputs))
        return logits.numpy()

    return answer


def _onnx(student: FoldedStudent, requests: Requests, threads: int, path: Path) -> Answer:
    if not path.exists():
        write_onnx(student, path)
    loaded, x, nodes = load_onnx(path, threads), requests.x, requests.nodes
    if nodes is None:
        return lambda i: loaded.predict(x[i % len(x)])
    return lambda i: loaded.predict(x[i % len(x)], nodes[i % len(x)])


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
