"""Every operator's gradients: right, complete, and a second derivative is right or refused with an error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from .opinfo import OPS
from .opspec import OpSpec
from .samples import Sample, assert_close, emulated, outputs

DIFFERENTIABLE = [spec for spec in OPS if spec.differentiable]
GRADIENT_TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2e-2}


def _paths(spec: OpSpec, sample: Sample) -> list[str]:
    return [path for path in spec.differentiable if path in sample.tensors()]


def _cotangent(value: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(value.numel())
    drawn = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    # bfloat16 numbers: every dtype can hold them, so all of them start from the same cotangent.
    return drawn.to(torch.bfloat16).to(value.dtype).to(value.device)


def gradients(function: Any, sample: Sample, paths: list[str], create_graph: bool = False) -> dict[str, Tensor]:
    """The gradient of the sum of all outputs times a fixed random cotangent, for each path."""
    leaves = {path: sample[path].detach().clone().requires_grad_() for path in paths}
    results = [value for value in outputs(function(sample.replace(leaves))).values() if value.requires_grad]
    assert results, "no output depends on the differentiable arguments"
    # A gradient that is linear in its argument depends on nothing but the cotangent: with create_graph that counts too.
    cotangents = [_cotangent(result).requires_grad_(create_graph) for result in results]
    found = torch.autograd.grad(results, list(leaves.values()), cotangents, create_graph=create_graph)
    return dict(zip(paths, found, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("spec", DIFFERENTIABLE, ids=str)
def test_equals_the_float64_reference(spec: OpSpec, dtype: torch.dtype, device: torch.device) -> None:
    for sample in spec.samples():
        placed = sample.to(dtype).on(device)
        paths = _paths(spec, placed)
        got, want = gradients(spec.public, placed, paths), gradients(spec.truth, placed.to(torch.float64), paths)
        for path in paths:
            assert got[path].dtype == placed[path].dtype
            what = f"{spec} on {sample}, gradient of '{path}'"
            assert_close(got[path], want[path], what, GRADIENT_TOLERANCE[dtype])


@pytest.mark.parametrize("spec", DIFFERENTIABLE, ids=str)
def test_each_argument_alone_gets_the_same_gradient(spec: OpSpec, device: torch.device) -> None:
    sample = spec.rows(63).to(torch.float32).on(device)
    paths = _paths(spec, sample)
    together = gradients(spec.public, sample, paths)
    for path in paths:
        alone = gradients(spec.public, sample, [path])
        assert torch.equal(alone[path], together[path]), f"{spec}: gradient of '{path}' depends on who else asks"


@pytest.mark.parametrize("spec", DIFFERENTIABLE, ids=str)
def test_gradcheck(spec: OpSpec, device: torch.device) -> None:
    sample = spec.rows(5).to(torch.float64).on(device)
    paths = _paths(spec, sample)

    def call(*values: Tensor) -> tuple[Tensor, ...]:
        results = outputs(spec.public(sample.replace(dict(zip(paths, values, strict=True)))))
        return tuple(value for value in results.values() if value.is_floating_point())

    leaves = [sample[path].detach().clone().requires_grad_() for path in paths]
    # nondet_tol 0: the gradient must repeat bit for bit. In a random direction where every value would take too long.
    assert torch.autograd.gradcheck(call, leaves, nondet_tol=0.0, fast_mode=emulated())
    if spec.second_derivative == spec.differentiable:
        assert torch.autograd.gradgradcheck(call, leaves)
        for position, leaf in enumerate(leaves):  # each alone: the others count as constants
            alone = [other.detach() if other is not leaf else leaf for other in leaves]
            assert torch.autograd.gradgradcheck(call, alone), paths[position]


@pytest.mark.parametrize("spec", [s for s in DIFFERENTIABLE if s.second_derivative != s.differentiable], ids=str)
def test_second_derivative_is_refused_with_an_error(spec: OpSpec, device: torch.device) -> None:
    spec.need_compiled()
    sample = spec.rows(5).to(torch.float64).on(device)
    for path in _paths(spec, sample):
        if path in spec.second_derivative:
            continue
        first = gradients(spec.public, sample, [path], create_graph=True)[path]
        assert first.requires_grad, f"the gradient of '{path}' would silently count as constant"
        with pytest.raises(RuntimeError, match=r"gmoe::\w+.*second derivative"):
            first.square().sum().backward()


@pytest.mark.parametrize("spec", [spec for spec in OPS if spec.detached], ids=str)
def test_detached_arguments_get_no_gradient(spec: OpSpec, device: torch.device) -> None:
    sample = spec.rows(63).to(torch.float32).on(device)
    leaves = {path: sample[path].clone().requires_grad_() for path in spec.detached}
    results = [value for value in outputs(spec.public(sample.replace(leaves))).values() if value.requires_grad]
    if results:
        found = torch.autograd.grad(results, list(leaves.values()), [_cotangent(r) for r in results], allow_unused=True)
        assert all(gradient is None for gradient in found)


@pytest.mark.parametrize("spec", DIFFERENTIABLE, ids=str)
def test_no_gradient_no_history(spec: OpSpec, device: torch.device) -> None:
    sample = spec.rows(5).to(torch.float32).on(device)
    assert not any(value.requires_grad for value in outputs(spec.public(sample)).values())
    leaves = {path: sample[path].clone().requires_grad_() for path in _paths(spec, sample)}
    with torch.no_grad():
        assert not any(value.requires_grad for value in outputs(spec.public(sample.replace(leaves))).values())


@pytest.mark.parametrize("spec", DIFFERENTIABLE, ids=str)
def test_cotangents_of_any_layout(spec: OpSpec, device: torch.device) -> None:
    """sum().backward() hands the operator an expanded cotangent, a transposed loss a transposed one."""
    sample = spec.rows(63).to(torch.float32).on(device)
    leaves = {path: sample[path].clone().requires_grad_() for path in _paths(spec, sample)}
    result = next(v for v in outputs(spec.public(sample.replace(leaves))).values() if v.requires_grad)
    ones = torch.ones_like(result)
    for odd in (ones[:1, :1].expand_as(ones), ones.transpose(0, -1).contiguous().transpose(0, -1)):
        got, want = (torch.autograd.grad(result, list(leaves.values()), c, retain_graph=True) for c in (odd, ones))
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
