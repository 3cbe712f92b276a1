"""Serving a packed student: RbM 192->256->256->40, E=8, k=3, against ONNX Runtime and plain PyTorch."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from gmoe_ext import models
from gmoe_ext.export import pack
from gmoe_ext.export.pack import Weights
from gmoe_ext.models import MLP, RbM
from gmoe_ext.runtime import PackedStudent

from ..rivals import onnx_student as rivals
from . import parity
from .claim import Claim, Experiment, Microseconds, Missing, Ratio, Tail, Variant, Variants, optional, speedup
from .parity import on_reference
from .settings import Settings, imported

NUM_EXPERTS, K = 8, 3
DIMS = {"in_dim": 192, "hidden_dim": 256, "out_dim": 40, "num_layers": 3}
QUICK_DIMS = {"in_dim": 19, "hidden_dim": 24, "out_dim": 4, "num_layers": 3}
BATCHES = 64  # of different rows, so that the experts a row needs are rarely all in the nearest cache
ORT_RBM = ("ONNX Runtime, gather", "ONNX Runtime, dense")

Answer = Callable[[np.ndarray], np.ndarray]


def experiments(settings: Settings) -> list[Experiment]:
    """One row, its tail, a batch."""
    batch, calls = settings.size(1000, 40), settings.size(100_000, 300)
    one, many = "student/1 row", f"student/{batch} rows"
    single = (
        Claim(f"{one}/fp32", "one row <= 25 us fp32", Microseconds("ours"), 25.0, "at most"),
        Claim(f"{one}/bf16", "one row <= 15 us bf16", Microseconds("ours bf16"), 15.0, "at most"),
        speedup(f"{one}/ONNX Runtime", ">= 3x ONNX Runtime's RbM", ORT_RBM, 3.0),
    )
    tail = Claim(f"{one}/tail", "p99 <= 2x p50 over 10^5 calls", Tail("ours"), 2.0, "at most")
    plain = Claim(
        f"{many}/MLP",
        "batch 1000 <= 1.15 x k x the plain MLP's time in ONNX Runtime",
        Ratio(("ours",), ("ONNX Runtime, MLP",)),
        1.15 * K,
        "at most",
    )
    return [
        Experiment(one, partial(serving, settings, 1), single),
        Experiment(f"{one}, {calls} calls", partial(alone, settings), (tail,), calls=calls),
        Experiment(many, partial(serving, settings, batch), (plain,)),
    ]


def students(settings: Settings) -> tuple[RbM, MLP]:
    """Build the student and an MLP of the size of one expert."""
    torch.manual_seed(0)
    dims = QUICK_DIMS if settings.quick else DIMS
    rbm, mlp = models.build("rbm", **dims, num_experts=NUM_EXPERTS, k=K), models.build("mlp", **dims)
    assert isinstance(rbm, RbM) and isinstance(mlp, MLP)
    return rbm.eval(), mlp.eval()


def packed(model: RbM, threads: int, weights: Weights = "float32") -> PackedStudent:
    """Pack and load the student; its file is mapped and may be unlinked."""
    with tempfile.TemporaryDirectory() as folder:
        student = PackedStudent.load(pack(model, Path(folder) / "student.safetensors", dtype=weights))
    student.num_threads = threads
    return student


def rows_of(model: RbM, rows: int) -> np.ndarray:
    """Draw inputs [BATCHES, rows, D]."""
    in_dim = model.expert_layers()[0].experts.in_dim
    return np.random.default_rng(0).standard_normal((BATCHES, rows, in_dim), np.float32)


def in_turn(answer: Answer, x: np.ndarray) -> Callable[[], np.ndarray]:
    """Make a call that answers the next batch each time."""
    turns = itertools.cycle(x)
    return lambda: answer(next(turns))


def _variant(answer: Answer, x: np.ndarray, expected: np.ndarray, precision: torch.dtype = torch.float32) -> Variant:
    right = parity.same(torch.from_numpy(expected))
    return Variant(in_turn(answer, x), lambda _: right(torch.from_numpy(np.array(answer(x[0]))).to(precision)))


def alone(settings: Settings) -> Variants:
    """Prepare ours, one row at a time."""
    rbm, _ = students(settings)
    x = rows_of(rbm, 1)
    return {"ours": _variant(packed(rbm, settings.threads).predict, x, _expected(rbm, x))}


def serving(settings: Settings, rows: int) -> Variants:
    """Prepare ours, the same model in PyTorch, ONNX Runtime's forms, and the plain MLP."""
    rbm, mlp = students(settings)
    x = rows_of(rbm, rows)
    expected = _expected(rbm, x)
    plain = mlp(torch.from_numpy(x[0])).logits.numpy()
    variants: dict[str, Variant | Missing] = {
        "ours": _variant(packed(rbm, settings.threads).predict, x, expected),
        "model in PyTorch": _variant(lambda one: rbm(torch.from_numpy(one)).logits.numpy(), x, expected),
        "MLP in PyTorch": _variant(lambda one: mlp(torch.from_numpy(one)).logits.numpy(), x, plain),
    }
    if rows == 1:  # in a batch, rounded weights send some rows to other experts
        narrow = packed(rbm, settings.threads, "bfloat16")
        variants["ours bf16"] = _variant(narrow.predict, x, expected, torch.bfloat16)
    for form, name in zip(("gather", "dense"), ORT_RBM, strict=True):
        make = partial(rivals.rbm, rbm, form, settings.threads)
        variants[name] = optional(partial(_onnx, settings, make, x, expected))
    make = partial(rivals.mlp, mlp, settings.threads)
    variants["ONNX Runtime, MLP"] = optional(partial(_onnx, settings, make, x, plain))
    return variants


def _expected(rbm: RbM, x: np.ndarray) -> np.ndarray:
    with on_reference():
        return rbm(torch.from_numpy(x[0])).logits.numpy()


def _onnx(settings: Settings, make: Callable[[], Answer], x: np.ndarray, expected: np.ndarray) -> Variant:
    for package in ("onnx", "onnxruntime"):
        settings.rival("ONNX Runtime", package)
    return _variant(imported("onnxruntime", make), x, expected)
