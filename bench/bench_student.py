"""A packed student against the model it came from, with and without compiled operators; 192 -> 256 -> 256 -> 40."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gmoe_ext import models
from gmoe_ext.export import pack
from gmoe_ext.runtime import PackedStudent

from .claims.parity import on_reference

SHAPE = {"in_dim": 192, "hidden_dim": 256, "out_dim": 40, "num_layers": 3}
EXPERTS = {"rbm": {"num_experts": 8, "k": 3}, "mlp": {}}


@pytest.mark.parametrize("name", EXPERTS)
@pytest.mark.parametrize("implementation", ["packed", "torch", "reference"])
@pytest.mark.parametrize("count", [1, 64, 1000])
def test_student(benchmark: Any, tmp_path: Path, name: str, implementation: str, count: int) -> None:
    torch.manual_seed(0)
    model = models.build(name, **SHAPE, **EXPERTS[name]).eval()
    rows = np.random.default_rng(0).standard_normal((64, count, 192), np.float32)
    if implementation == "packed":
        student = PackedStudent.load(pack(model, tmp_path / "student.safetensors"))
        student.num_threads = torch.get_num_threads()
        turns = itertools.cycle(rows)

        def answer() -> Any:
            return student.predict(next(turns))
    else:
        batches = itertools.cycle(torch.from_numpy(rows))

        @torch.inference_mode()
        def answer() -> Any:
            with on_reference() if implementation == "reference" else nullcontext():
                return model(next(batches)).logits

    benchmark.group = f"student, {count} rows, {name}"
    benchmark.extra_info["implementation"] = implementation
    benchmark(answer)
