"""Every raw operator works with opcheck, fake tensors, torch.compile and autocast, and survives careless calls."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from gmoe_ext import _native

from .opinfo import OPS
from .opspec import OpSpec
from .samples import Sample, assert_identical, outputs, settle

FLOATING_OPS = [spec for spec in OPS if spec.floating]
ROOT = Path(__file__).resolve().parents[2]
ISAS = ("baseline", "avx2", "avx512")


class RawCalls(TorchDispatchMode):
    """Records the calls of gmoe operators that run below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, tuple[Any, tuple[Any, ...]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "gmoe":
            plain = tree_map(lambda a: a.detach().clone() if isinstance(a, Tensor) else a, args)
            self.calls.setdefault(str(func), (func, plain))
        return func(*args, **(kwargs or {}))


def _forward_backward(spec: OpSpec, sample: Sample) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    leaves = spec.leaves(sample)
    results = outputs(spec.public(sample.replace(leaves)))
    if leaves:
        wanted = [value for value in results.values() if value.requires_grad]
        torch.autograd.backward(wanted, [torch.ones_like(value).cumsum(-1) for value in wanted])
    detached = {name: value.detach() for name, value in results.items()}
    return detached, {path: leaf.grad for path, leaf in leaves.items() if leaf.grad is not None}


def raw_calls(spec: OpSpec, sample: Sample) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    with RawCalls() as recorder:
        _forward_backward(spec, sample)
    return recorder.calls


@pytest.mark.parametrize("rows", [0, 5])
@pytest.mark.parametrize("spec", OPS, ids=str)
def test_opcheck(spec: OpSpec, rows: int, device: torch.device) -> None:
    spec.need_compiled()
    calls = raw_calls(spec, spec.rows(rows).to(torch.float32).on(device))
    assert any(func._schema.name == f"gmoe::{spec.name}" for func, _ in calls.values()), "the raw operator never ran"
    for func, args in calls.values():
        # A gradient of first order can itself be asked for a gradient only where second derivatives are right.
        if func._schema.name == f"gmoe::{spec.name}" and spec.differentiable:
            args = tree_map(_requiring_grad, args)
        torch.library.opcheck(func, args)


def _requiring_grad(value: Any) -> Any:
    return value.requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value


@pytest.mark.parametrize("rows", [0, 63])
@pytest.mark.parametrize("spec", [spec for spec in OPS if spec.static_shape], ids=str)
def test_fake_tensors_have_the_real_shapes(spec: OpSpec, rows: int, device: torch.device) -> None:
    spec.need_compiled()
    for dtype in (torch.float32, torch.bfloat16) if spec.floating else (torch.float32,):
        sample = spec.rows(rows).to(dtype).on(device)
        real = outputs(spec.public(sample))
        with FakeTensorMode() as mode:
            fake = outputs(spec.public(sample.map(lambda _, tensor: mode.from_tensor(tensor))))
        for name, value in real.items():
            got = fake[name]
            assert (got.shape, got.dtype, got.device) == (value.shape, value.dtype, value.device), f"'{name}'"
            assert got.stride() == value.stride(), f"'{name}' strides"


def _assert_compiled_equals_eager(spec: OpSpec, samples: list[Sample], backend: str) -> None:
    """Forward and backward of the public function, compiled whole, for several sizes with one compilation."""
    torch._dynamo.reset()
    counter, compilations = CompileCounterWithBackend(backend), []
    paths = list(spec.leaves(samples[0]))

    def call(sample_args: dict[str, Any]) -> tuple[Tensor, ...]:
        return tuple(outputs(spec.public(Sample("compiled", sample_args))).values())

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=counter)
    for sample in samples:
        want, want_grad = _forward_backward(spec, sample)
        leaves = spec.leaves(sample)
        got = dict(zip(want, compiled(sample.replace(leaves).args), strict=True))
        if paths:
            wanted = [value for value in got.values() if value.requires_grad]
            torch.autograd.backward(wanted, [torch.ones_like(value).cumsum(-1) for value in wanted])
        assert_identical({name: value.detach() for name, value in got.items()}, want, f"{spec} compiled")
        assert_identical({path: leaves[path].grad for path in want_grad}, want_grad, f"gradients of {spec} compiled")
        compilations.append(counter.frame_count)
    assert len(set(compilations)) == 1, f"{spec} was compiled again for another size: {compilations}"


@pytest.mark.parametrize("spec", [spec for spec in OPS if spec.static_shape], ids=str)
def test_compiles_whole_for_any_size(spec: OpSpec, device: torch.device) -> None:
    spec.need_compiled()
    samples = [spec.rows(rows).to(torch.float32).on(device) for rows in (63, 40, 257)]
    _assert_compiled_equals_eager(spec, samples, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("spec", [spec for spec in OPS if spec.differentiable], ids=str)
def test_compiles_with_inductor(spec: OpSpec, device: torch.device) -> None:
    spec.need_compiled()
    _assert_compiled_equals_eager(spec, [spec.rows(63).to(torch.float32).on(device)], "inductor")


@pytest.mark.parametrize("spec", FLOATING_OPS, ids=str)
def test_autocast(spec: OpSpec, device: torch.device) -> None:
    """Under autocast the operator runs in its own dtype, whatever mixture of float32 and bfloat16 arrives."""
    spec.need_compiled()
    full = spec.rows(63).to(torch.float32).on(device)
    half = spec.rows(63).to(torch.bfloat16).on(device)
    floating = [path for path, t in full.tensors().items() if t.is_floating_point() and path != "graph.weight"]
    mixed = full.replace({floating[0]: half[floating[0]]})
    for sample in (full, half, mixed):
        wanted = spec.autocast or _widest([sample[path] for path in floating])
        with torch.autocast(device.type, dtype=torch.bfloat16):
            got = outputs(spec.public(sample))
        cast = sample.replace({path: sample[path].to(wanted) for path in floating})
        assert_identical(got, outputs(spec.public(cast)), f"{spec} under autocast")


@pytest.mark.parametrize("spec", [spec for spec in FLOATING_OPS if spec.differentiable], ids=str)
def test_gradients_under_autocast_have_the_leaves_dtype(spec: OpSpec, device: torch.device) -> None:
    spec.need_compiled()
    sample = spec.rows(63).to(torch.float32).on(device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        _, gradients = _forward_backward(spec, sample)
    assert gradients.keys() == spec.leaves(sample).keys()
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in gradients.values())


def _widest(tensors: list[Tensor]) -> torch.dtype:
    return torch.float32 if any(tensor.dtype == torch.float32 for tensor in tensors) else torch.bfloat16


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
    own = _native.build_info()["cpu"]
    if ISAS.index(isa) > ISAS.index(own):
        pytest.skip(f"this processor has no {isa}")
    if isa == own:
        pytest.skip(f"all tests here run on {isa}")
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
