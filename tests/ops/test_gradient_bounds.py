"""The gradients whose terms cancel stay within docs/developing/numerics.md over many random calls, small ones too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gmoe_ext import ops, reference

pytestmark = pytest.mark.usefixtures("made_on_device")

CALLS = 400


class Draw:
    """Random sizes and values of one call."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def size(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=self.generator))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator)

    def index(self, bound: int, *shape: int) -> Tensor:
        return torch.randint(bound, shape, generator=self.generator)


def assert_bound(gradients: Callable[[bool], list[Tensor]], bound: float, what: str) -> None:
    """|got - want| relative to the value plus the largest value, by the operator (False) and the reference (True)."""
    for got, want in zip(gradients(False), gradients(True), strict=True):
        largest = want.abs().max()
        if largest > 0:
            error = float(((got.double() - want).abs() / (want.abs() + largest)).max())
            assert error <= bound, f"{what}: {error:.2e} of {bound:.0e}"


@pytest.mark.parametrize("most_slots", [2, 4, 9, 40])
def test_expert_norm_of_experts_with_few_slots(most_slots: int) -> None:
    """Of two slots all but eps / (var + eps) of the gradient cancels."""
    for seed in range(CALLS):
        check_norm(seed, most_slots)


def check_norm(seed: int, most_slots: int) -> None:
    draw = Draw(seed)
    experts, dim, k = draw.size(1, 12), draw.size(1, 40), draw.size(1, 3)
    rows = max(1, experts * most_slots // (2 * k))
    index = draw.index(experts, rows, k)
    if most_slots == 2:  # exactly: no expert has more
        index = (torch.randperm(rows * k, generator=draw.generator) // 2).reshape(rows, k)
        experts = int(index.max()) + 1
    y, weight, bias = draw.normal(rows, k, dim), draw.normal(experts, dim), draw.normal(experts, dim)
    running_mean, running_var = draw.normal(experts, dim), draw.uniform(experts, dim) + 0.1
    gate = [draw.uniform(rows, k)] if draw.size(0, 1) else []
    cotangent = draw.normal(*((rows, dim) if gate else (rows, k, dim)))

    def gradients(true: bool) -> list[Tensor]:
        dtype = torch.float64 if true else torch.float32
        leaves = [t.to(dtype).requires_grad_() for t in (y, weight, bias, *gate)]
        norm = reference.expert_norm if true else ops.expert_norm
        running = running_mean.to(dtype), running_var.to(dtype)
        out = norm(leaves[0], index, leaves[1], leaves[2], *running, leaves[3] if gate else None)[0]
        return list(torch.autograd.grad(out, leaves, cotangent.to(dtype)))

    assert_bound(gradients, 2e-5, f"call {seed} of up to {most_slots} slots")


@pytest.mark.parametrize("noisy", [False, True])
def test_gates_in_bfloat16(noisy: bool) -> None:
    """Half the bound: gates that were rounded do not add up to 1, which the difference to their mean must not show."""
    for seed in range(4 * CALLS):
        check_gates(seed, noisy)


def check_gates(seed: int, noisy: bool) -> None:
    draw = Draw(seed)
    rows, experts = draw.size(1, 8), draw.size(2, 24)
    k = draw.size(1, min(experts, 8))
    clean, noise, sigma = draw.normal(rows, experts), draw.normal(rows, experts), draw.uniform(rows, experts) + 0.05
    logits, cotangent = [t.bfloat16() for t in (clean, sigma, noise)], draw.normal(rows, k).bfloat16()
    spread = draw.size(1, 3)  # nearly equal gradients cancel most
    cotangent = (cotangent / 4**spread + 1).bfloat16()
    order = []

    def gradients(true: bool) -> list[Tensor]:
        dtype = torch.float64 if true else torch.bfloat16
        leaves = [t.to(dtype).requires_grad_() for t in logits[: 1 + noisy]]
        module = reference if true else ops
        if noisy:
            gate, index = module.noisy_topk(*leaves, logits[2].to(dtype), k)[:2]
        else:
            gate, index = module.topk_softmax(leaves[0], k)
        order.append(index)
        found = torch.autograd.grad(gate, leaves, cotangent.to(dtype))
        return [] if k == 1 else list(found)  # of one gate the gradient is exactly 0

    gradients(False), gradients(True)
    if torch.equal(*order[:2]):  # sums that bfloat16 ranks otherwise are another routing
        assert_bound(gradients, 1e-2, f"call {seed}")
