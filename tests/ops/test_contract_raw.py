"""Raw calls of torch.ops.gmoe, which anyone can make, are checked too; every instruction set computes the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gmoe_ext import _native

from .opinfo import OPS, OpSpec
from .samples import assert_identical, outputs, settle
from .test_contract_dispatch import raw_calls

ROOT = Path(__file__).resolve().parents[2]
ISAS = ("baseline", "avx2", "avx512")


def _wrong(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Tensors a careless caller might pass instead."""
    yield "flat", tensor.flatten()
    yield "one dimension more", tensor[None]
    yield "scalar", tensor.new_zeros(())
    if tensor.numel():
        yield "one row less", tensor[:-1]
        yield "one row more", torch.cat([tensor, tensor[-1:]])
        yield "no rows", tensor[:0]
        yield "one column less", tensor[..., :-1]
    yield "another dtype", tensor.to(torch.float64 if tensor.is_floating_point() else torch.int16)
    yield (
        "integers for reals or reals for integers",
        tensor.to(torch.int64 if tensor.is_floating_point() else torch.float32),
    )


@pytest.mark.parametrize("spec", OPS, ids=str)
def test_a_careless_raw_call_is_an_error_or_harmless(spec: OpSpec, device: torch.device) -> None:
    spec.need_compiled()
    sample = spec.rows(20).to(torch.float32).on(device)
    before = outputs(spec.public(sample))
    refused = 0
    for func, args in raw_calls(spec, sample).values():
        for position, argument in enumerate(args):
            if not isinstance(argument, Tensor):
                continue
            for label, wrong in _wrong(argument):
                try:
                    func(*args[:position], wrong, *args[position + 1 :])
                    settle(device)
                except Exception as error:
                    assert "gmoe::" in str(error), f"{func} argument {position}, {label}: {error}"
                    refused += 1
    assert refused, "nothing was refused"
    assert_identical(outputs(spec.public(sample)), before, f"{spec} after careless calls")


def _run(code: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GMOE_EXT_REQUIRE_NATIVE": "1", **env}
    return subprocess.run(
        [sys.executable, *code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.native
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_equals_the_reference(isa: str) -> None:
    if ISAS.index(isa) > ISAS.index(_native.build_info()["cpu"]):
        pytest.skip(f"this processor has no {isa}")
    chosen = "equals_the_float64_reference or integers_equal"
    tests = [f"tests/ops/test_contract_{part}.py" for part in ("forward", "gradient")]
    done = _run(["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", chosen, *tests], GMOE_EXT_CPU=isa)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.native
def test_unknown_instruction_set_is_an_error() -> None:
    code = "import torch, gmoe_ext; gmoe_ext.ops.topk_softmax(torch.randn(2, 3), 1)"
    done = _run(["-c", code], GMOE_EXT_CPU="mmx")
    assert done.returncode != 0
    assert "GMOE_EXT_CPU=mmx" in done.stderr and "expected baseline, avx2 or avx512" in done.stderr
