"""expert_plan and expert_linear: grouped top-k dispatch, d=256, E=8, k=3."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from gmoe_ext import ops, reference

from ..rivals import dispatch as rivals
from . import inputs, parity
from .claim import Claim, Experiment, Microseconds, Missing, Ratio, Variant, Variants, optional, speedup
from .compiled import compiled
from .settings import Settings

DIM, NUM_EXPERTS, K = 256, 8, 3
EAGER = tuple(rivals.EAGER)
GEMM = ("gemm: mm", "gemm: onednn packed")
GEMM_ROWS = 1024  # rows and result of this many rows stay in L2


class Operands(NamedTuple):
    """What every form takes."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    index: Tensor
    gate: Tensor


def experiments(settings: Settings) -> list[Experiment]:
    """One row, a batch, a graph, a large graph; forward and backward."""
    batch, graph, large = settings.size(1024, 64), settings.size(20_000, 200), settings.size(170_000, 400)
    return [
        _one_row(settings),
        _unclaimed(settings, batch),
        _unclaimed(settings, graph),
        _large(settings, large),
        _backward(graph),
    ]


def _name(rows: int) -> str:
    return f"expert_linear/{rows}x{DIM}"


def _one_row(settings: Settings) -> Experiment:
    source = "N=1: <= 10 us"
    claims = (
        Claim(f"{_name(1)}/with plan", source, Microseconds("ours"), 10.0, "at most"),
        Claim(f"{_name(1)}/plan at hand", source, Microseconds("ours, plan at hand"), 10.0, "at most"),
    )
    return Experiment(_name(1), partial(forward, settings, 1), claims)


def _unclaimed(settings: Settings, rows: int) -> Experiment:
    """Sizes between, for the record."""
    return Experiment(_name(rows), partial(forward, settings, rows), ())


def _large(settings: Settings, rows: int) -> Experiment:
    name = _name(rows)
    claims = (
        speedup(f"{name}/eager", "N=170000 k=3: >= 2.4x best eager", EAGER, 2.4),
        speedup(f"{name}/dense", "N=170000 k=3: >= 9x dense", "dense", 9.0),
        Claim(f"{name}/gemm", "useful rate >= 85% of packed GEMM at the same d", Ratio(GEMM, ("ours",)), 0.85),
        speedup(f"{name}/bf16", "bf16 >= 1.7x our fp32", "ours", 1.7, "ours bf16"),
    )
    return Experiment(name, partial(forward, settings, rows), claims)


def _backward(rows: int) -> Experiment:
    name = f"{_name(rows)} with gradients"
    claims = (speedup(f"{name}/eager", "forward+backward >= 1.7x best eager", EAGER, 1.7),)
    return Experiment(name, partial(with_gradients, rows), claims, gradients=True)


def operands(rows: int, dtype: torch.dtype = torch.float32) -> Operands:
    """Random rows, weights of an average linear layer, a uniform routing."""
    gate, index = inputs.routing(rows, NUM_EXPERTS, K, seed=3)
    return Operands(
        inputs.normal(rows, DIM, seed=0, dtype=dtype),
        (inputs.normal(NUM_EXPERTS, DIM, DIM, seed=1) / DIM**0.5).to(dtype),
        inputs.normal(NUM_EXPERTS, DIM, seed=2, dtype=dtype),
        index,
        gate.to(dtype),
    )


def ours(x: Tensor, weight: Tensor, bias: Tensor, index: Tensor, gate: Tensor) -> Tensor:
    """Group, then multiply."""
    return ops.expert_linear(x, weight, bias, ops.expert_plan(index, len(weight)), gate)


def by_reference(x: Tensor, weight: Tensor, bias: Tensor, index: Tensor, gate: Tensor) -> Tensor:
    """The same by gmoe_ext.reference."""
    return reference.expert_linear(x, weight, bias, reference.expert_plan(index, len(weight)), gate)


def forward(settings: Settings, rows: int) -> Variants:
    """All forms, each with the flops that are of use: 2 N k D F."""
    wide = operands(rows)
    half = operands(rows, torch.bfloat16)
    right = parity.same(by_reference(*wide))
    flops = 2.0 * rows * K * DIM * DIM
    plan = ops.expert_plan(wide.index, NUM_EXPERTS)
    forms: dict[str, rivals.Dispatch] = {"ours": ours, **rivals.EAGER}
    forms |= {
        "dense": rivals.dense,
        "published": rivals.published_dispatcher,
        "_grouped_mm": rivals.grouped_mm,
    }
    variants: dict[str, Variant | Missing] = {
        name: Variant(partial(form, *wide), right, flops) for name, form in forms.items()
    }
    variants["torch.compile of dense"] = optional(
        lambda: Variant(partial(compiled(settings, rivals.dense), *wide), right, flops)
    )
    variants["ours, plan at hand"] = Variant(
        lambda: ops.expert_linear(wide.x, wide.weight, wide.bias, plan, wide.gate), right, flops
    )
    variants["ours bf16"] = Variant(partial(ours, *half), parity.same(by_reference(*half)), flops)
    block = inputs.normal(GEMM_ROWS, DIM, seed=4)
    for name, product in rivals.packed_gemm(block, wide.weight[0]).items():
        variants[f"gemm: {name}"] = Variant(product, work=2.0 * GEMM_ROWS * DIM * DIM)
    return variants


def with_gradients(rows: int) -> Variants:
    """Forward and the gradients of x, weight, bias and gate."""
    wide = operands(rows)
    leaves = [tensor.requires_grad_() for tensor in (wide.x, wide.weight, wide.bias, wide.gate)]
    grad_y = inputs.normal(rows, DIM, seed=5)

    def step(form: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        y = form(*wide)
        return y.detach(), *torch.autograd.grad(y, leaves, grad_y)

    right = parity.same(step(by_reference))
    forms = {"ours": ours, **rivals.EAGER, "dense": rivals.dense, "_grouped_mm": rivals.grouped_mm}
    return {name: Variant(partial(step, form), right) for name, form in forms.items()}
