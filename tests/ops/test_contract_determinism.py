"""Every operator repeats bit for bit, for any number of threads, on dirty memory; the fallback gives the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from gmoe_ext import _native

from .opinfo import OPS
from .opspec import OpSpec
from .samples import Sample, assert_identical, emulated, outputs
from .test_contract_forward import assert_agrees
from .test_contract_gradient import gradients

SIZES = (63, 2000)


def _everything(spec: OpSpec, sample: Sample) -> dict[str, torch.Tensor]:
    """Outputs and gradients of one call."""
    paths = [path for path in spec.differentiable if path in sample.tensors()]
    found = dict(outputs(spec.public(sample)))
    if paths:
        found.update({f"gradient of {path}": value for path, value in gradients(spec.public, sample, paths).items()})
    return found


def _samples(spec: OpSpec, device: torch.device) -> Iterator[Sample]:
    for dtype in (torch.float32, torch.bfloat16) if spec.floating else (torch.float32,):
        yield from (spec.rows(rows).to(dtype).on(device) for rows in (SIZES[:1] if emulated() else SIZES))


@pytest.mark.parametrize("spec", OPS, ids=str)
def test_repeats_bit_for_bit(spec: OpSpec, device: torch.device) -> None:
    for sample in _samples(spec, device):
        first = _everything(spec, sample)
        for _ in range(3):
            assert_identical(_everything(spec, sample), first, f"{spec} again")


@pytest.mark.parametrize("spec", OPS, ids=str)
def test_same_bits_for_any_number_of_threads(spec: OpSpec) -> None:
    spec.need_compiled()
    for sample in [*_samples(spec, torch.device("cpu")), spec.rows(9001).to(torch.float32)]:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(_everything(spec, sample))
        for threads, other in zip((2, 3), found[1:], strict=True):
            assert_identical(other, found[0], f"{spec} with {threads} threads and with 1")


@pytest.fixture
def dirty_memory() -> Iterator[None]:
    """Every torch.empty comes filled with NaN, or with the largest integer: what is not written shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("spec", OPS, ids=str)
def test_every_output_is_written(spec: OpSpec, dirty_memory: None, device: torch.device) -> None:
    for sample in spec.samples():
        placed = sample.to(torch.float32).on(device)
        for name, value in _everything(spec, placed).items():
            unwritten = value.isnan() if value.is_floating_point() else value == torch.iinfo(value.dtype).max
            assert not unwritten.any(), f"{spec} on {sample}: '{name}' has {int(unwritten.sum())} unwritten values"


@pytest.mark.parametrize("spec", OPS, ids=str)
def test_arguments_are_left_as_they_were(spec: OpSpec, device: torch.device) -> None:
    sample = spec.rows(63).to(torch.float32).on(device)
    before = {path: tensor.clone() for path, tensor in sample.tensors().items()}
    _everything(spec, sample)
    assert_identical(sample.tensors(), before, f"arguments of {spec}")


@pytest.mark.parametrize("spec", OPS, ids=str)
def test_the_fallback_gives_the_same(spec: OpSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "available", False)
    assert _native.backend() == "reference"
    for rows in (0, 63):
        sample = spec.rows(rows).to(torch.float32)
        assert_identical(outputs(spec.public(sample)), outputs(spec.truth(sample)), f"{spec} on the fallback")
        assert_agrees(spec, sample, 1e-5)
