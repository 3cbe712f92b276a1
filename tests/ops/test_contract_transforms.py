"""Every operator under torch.func and forward mode is right or says that it cannot; under float16 autocast it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from gmoe_ext.errors import DerivativeError

from .opinfo import OPS
from .opspec import OpSpec
from .samples import Sample, assert_identical, outputs
from .test_contract_dispatch import FLOATING_OPS, raw_calls

# torch maps an operator over a batch by calling it for each sample, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")

DIFFERENTIABLE = [spec for spec in OPS if spec.differentiable]

Scalar = Callable[..., Tensor]


def scalar_of(call: Callable[[Sample], Any], sample: Sample, paths: list[str]) -> Scalar:
    """A function of the leaves: a weighted sum of squares of everything that the operator returns."""

    def scalar(*leaves: Tensor) -> Tensor:
        results = outputs(call(sample.replace(dict(zip(paths, leaves, strict=True)))))
        total = leaves[0].new_zeros(())
        for value in results.values():
            if value.is_floating_point():
                weights = torch.arange(1.0, value.numel() + 1, dtype=value.dtype).reshape(value.shape)
                total = total + (weights * value.square()).sum()
        return total

    return scalar


def problem(spec: OpSpec) -> tuple[Scalar, Scalar, list[Tensor], tuple[int, ...]]:
    """The scalar by the operator and by the reference, its leaves and their numbers."""
    spec.need_compiled()
    sample = spec.rows(7).to(torch.float64)
    leaves = {path: leaf.detach() for path, leaf in spec.leaves(sample).items()}
    paths = list(leaves)
    by_operator, by_reference = scalar_of(spec.public, sample, paths), scalar_of(spec.truth, sample, paths)
    return by_operator, by_reference, list(leaves.values()), tuple(range(len(leaves)))


def same(got: Any, want: Any) -> None:
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9 * max(1.0, *(float(w.abs().max()) for w in want)))


@pytest.mark.parametrize("spec", DIFFERENTIABLE, ids=str)
def test_transforms_of_reverse_mode(spec: OpSpec) -> None:
    f, truth, leaves, numbers = problem(spec)
    copies = [leaf.clone().requires_grad_() for leaf in leaves]
    want = torch.autograd.grad(truth(*copies), copies)
    same(torch.func.grad(f, numbers)(*leaves), want)
    same(torch.func.vjp(f, *leaves)[1](torch.ones((), dtype=torch.float64)), want)
    same(torch.func.jacrev(f, numbers)(*leaves), want)


@pytest.mark.parametrize("spec", DIFFERENTIABLE, ids=str)
def test_per_sample_gradients(spec: OpSpec) -> None:
    f, truth, leaves, numbers = problem(spec)
    batch = [torch.stack([leaf, leaf * 1.01]) for leaf in leaves]
    got = torch.func.vmap(torch.func.grad(f, numbers))(*batch)
    for i in range(2):
        copies = [leaf[i].clone().requires_grad_() for leaf in batch]
        same([grad[i] for grad in got], torch.autograd.grad(truth(*copies), copies))


@pytest.mark.parametrize("spec", DIFFERENTIABLE, ids=str)
def test_forward_mode_is_the_references(spec: OpSpec) -> None:
    f, truth, leaves, numbers = problem(spec)
    copies = [leaf.clone().requires_grad_() for leaf in leaves]
    want = torch.autograd.grad(truth(*copies), copies)
    directions = [torch.randn_like(leaf) for leaf in leaves]
    derivative = sum((grad * direction).sum() for grad, direction in zip(want, directions, strict=True))
    same([torch.func.jvp(f, tuple(leaves), tuple(directions))[1]], [derivative])
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(*pair) for pair in zip(leaves, directions, strict=True)]
        same([forward_ad.unpack_dual(f(*duals)).tangent], [derivative])
    same(torch.func.jacfwd(f, numbers)(*leaves), want)
    same(
        [torch.func.hessian(f)(*leaves)],
        [torch.autograd.functional.hessian(lambda x: truth(x, *leaves[1:]), leaves[0])],
    )


@pytest.mark.parametrize("spec", OPS, ids=str)
def test_a_raw_operator_refuses_a_tangent(spec: OpSpec) -> None:
    spec.need_compiled()
    for name, (op, args) in raw_calls(spec, spec.rows(7).to(torch.float32)).items():
        for position, value in enumerate(args):
            if not isinstance(value, Tensor) or not value.is_floating_point():
                continue
            with forward_ad.dual_level():
                dual = forward_ad.make_dual(value, torch.ones_like(value))
                with pytest.raises(DerivativeError, match=f"{name.split('.')[0].replace('gmoe', 'gmoe:')}"):
                    op(*args[:position], dual, *args[position + 1 :])


@pytest.mark.parametrize("spec", DIFFERENTIABLE, ids=str)
@pytest.mark.parametrize("nested", ["func", "autograd"])
def test_a_second_derivative_is_right_or_refused(spec: OpSpec, nested: str) -> None:
    f, truth, leaves, _ = problem(spec)

    def twice(scalar: Scalar) -> Tensor:
        if nested == "func":
            inner = torch.func.grad(scalar)
            twofold: Tensor = torch.func.grad(lambda x: inner(x, *leaves[1:]).square().sum())(leaves[0])
            return twofold
        x = leaves[0].clone().requires_grad_()
        (first,) = torch.autograd.grad(scalar(x, *leaves[1:]), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    if spec.differentiable[0] in spec.second_derivative:
        same([twice(f)], [twice(truth)])
    else:
        with pytest.raises(DerivativeError, match="has no derivative"):
            twice(f)


# ---- float16


def _floating(sample: Sample) -> list[str]:
    return [path for path, t in sample.tensors().items() if t.is_floating_point() and path != "graph.weight"]


@pytest.mark.parametrize("spec", FLOATING_OPS, ids=str)
def test_float16_autocast_computes_in_float32_and_rounds_once(spec: OpSpec, device: torch.device) -> None:
    """Whatever mixture arrives; the product has the dtype of torch.nn.functional.linear, sums that of their rows."""
    spec.need_compiled()
    half = spec.rows(63).to(torch.float32).on(device)
    half = half.replace({"hops": 1} if "hops" in half.args else {})  # each hop rounds
    floating = _floating(half)
    half = half.replace({path: half[path].to(torch.float16) for path in floating})
    wide = half.replace({path: half[path].float() for path in floating})
    for sample in (wide, half, wide.replace({floating[0]: half[floating[0]]})):
        with torch.autocast(device.type, dtype=torch.float16):
            got = outputs(spec.public(sample))
        if spec.autocast == torch.float32:
            dtype = torch.float32
        elif spec.autocast is None:
            dtype = torch.float16 if all(sample[path].dtype == torch.float16 for path in floating) else torch.float32
        else:
            dtype = torch.float16
        want = outputs(spec.public(wide))
        rounded = {name: value.to(dtype) if value.is_floating_point() else value for name, value in want.items()}
        assert_identical(got, rounded, f"{spec} under float16 autocast")


@pytest.mark.parametrize("spec", DIFFERENTIABLE, ids=str)
def test_float16_autocast_trains(spec: OpSpec, device: torch.device) -> None:
    spec.need_compiled()
    sample = spec.rows(63).to(torch.float32).on(device)
    found = []
    for enabled in (False, True):
        leaves = spec.leaves(sample)
        with torch.autocast(device.type, dtype=torch.float16, enabled=enabled):
            results = outputs(spec.public(sample.replace(leaves)))
            loss = sum(value.float().sum() for value in results.values() if value.requires_grad)
        loss.backward()
        found.append({path: leaf.grad for path, leaf in leaves.items()})
    for path, want in found[0].items():
        got = found[1][path]
        assert got is not None and got.dtype == torch.float32
        torch.testing.assert_close(got, want, rtol=5e-3, atol=5e-3 * float(want.abs().max()))


@pytest.mark.parametrize("spec", FLOATING_OPS, ids=str)
def test_float16_without_autocast_is_refused(spec: OpSpec, device: torch.device) -> None:
    sample = spec.rows(6).to(torch.float32).on(device)
    sample = sample.replace({path: sample[path].to(torch.float16) for path in _floating(sample)})
    with pytest.raises(TypeError, match="got float16"):
        spec.public(sample)
