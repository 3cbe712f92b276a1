"""A packed student against the model it came from, with and without compiled operators; 192 -> 256 -> 256 -> 40."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from gmoe_ext import models
from gmoe_ext.export import pack
from gmoe_ext.runtime import PackedStudent

from ..claims.backend import on_reference

SHAPE = {"in_dim": 192, "hidden_dim": 256, "out_dim": 40, "num_layers": 3}


def build(name: str):
    torch.manual_seed(0)
    experts = {"num_experts": 8, "k": 3} if name == "rbm" else {}
    return models.build(name, **SHAPE, **experts).eval()


@pytest.mark.parametrize("name", ["rbm", "mlp"])
@pytest.mark.parametrize("implementation", ["packed", "torch", "reference"])
@pytest.mark.parametrize("count", [1, 64, 1000])
def test_student(benchmark, tmp_path: Path, name: str, implementation: str, count: int):
    model = build(name)
    rows = np.random.default_rng(0).standard_normal((64, count, 192), np.float32)
    turn = 0

    if implementation == "packed":
        student = PackedStudent.load(pack(model, tmp_path / "student.safetensors"))
        student.num_threads = torch.get_num_threads()

        def answer():
            nonlocal turn
            turn += 1
            return student.predict(rows[turn % 64])
    else:
        batches = torch.from_numpy(rows)

        @torch.inference_mode()
        def answer():
            nonlocal turn
            turn += 1
            with on_reference() if implementation == "reference" else nullcontext():
                return model(batches[turn % 64]).logits

    benchmark.group = f"student, {count} rows"
    benchmark(answer)
