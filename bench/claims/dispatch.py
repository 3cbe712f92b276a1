"""expert_plan and expert_linear: grouped top-k dispatch with E=8, k=3; d=256 on the CPU, several widths on a GPU."""

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
from .settings import Settings, compiled

DIM, NUM_EXPERTS, K = 256, 8, 3
EAGER = tuple(rivals.EAGER)
GEMM = ("gemm: mm", "gemm: onednn packed")
GEMM_ROWS = 1024  # rows and result of this many rows stay in L2


class Operands(NamedTuple):
    """The arguments of every form."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    index: Tensor  # type: ignore[assignment]
    gate: Tensor


def operands(rows: int, dim: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Operands:
    """Make random rows, weights of an average linear layer, and a uniform routing."""
    gate, index = inputs.routing(rows, NUM_EXPERTS, K, seed=3)
    return Operands(
        inputs.normal(rows, dim, seed=0).to(device, dtype),
        (inputs.normal(NUM_EXPERTS, dim, dim, seed=1) / dim**0.5).to(device, dtype),
        inputs.normal(NUM_EXPERTS, dim, seed=2).to(device, dtype),
        index.to(device),
        gate.to(device, dtype),
    )


def ours(x: Tensor, weight: Tensor, bias: Tensor, index: Tensor, gate: Tensor) -> Tensor:
    """Group rows by expert, then multiply."""
    return ops.expert_linear(x, weight, bias, ops.expert_plan(index, len(weight)), gate)


def by_reference(x: Tensor, weight: Tensor, bias: Tensor, index: Tensor, gate: Tensor) -> Tensor:
    """Do the same with gmoe_ext.reference."""
    return reference.expert_linear(x, weight, bias, reference.expert_plan(index, len(weight)), gate)


def experiments(settings: Settings) -> list[Experiment]:
    """One row, a batch, a graph, a large graph; forward and backward."""
    batch, graph, large = settings.size(1024, 64), settings.size(20_000, 200), settings.size(170_000, 400)
    one = _name(1)
    one_row = (
        Claim(f"{one}/with plan", "N=1: <= 10 us", Microseconds("ours"), 10.0, "at most"),
        Claim(f"{one}/plan at hand", "N=1: <= 10 us", Microseconds("ours, plan at hand"), 10.0, "at most"),
    )
    many = _name(large)
    many_rows = (
        speedup(f"{many}/eager", "N=170000 k=3: >= 2.4x best eager", EAGER, 2.4),
        speedup(f"{many}/dense", "N=170000 k=3: >= 9x dense", "dense", 9.0),
        Claim(f"{many}/gemm", "useful rate >= 85% of packed GEMM at the same d", Ratio(GEMM, ("ours",)), 0.85),
        speedup(f"{many}/bf16", "bf16 >= 1.7x our fp32", "ours", 1.7, "ours bf16"),
    )
    learning = f"{_name(graph)} with gradients"
    gradients = speedup(f"{learning}/eager", "forward+backward >= 1.7x best eager", EAGER, 1.7)
    return [
        Experiment(one, partial(forward, settings, 1), one_row),
        Experiment(_name(batch), partial(forward, settings, batch), ()),  # sizes between, for the record
        Experiment(_name(graph), partial(forward, settings, graph), ()),
        Experiment(many, partial(forward, settings, large), many_rows),
        Experiment(learning, partial(with_gradients, graph), (gradients,), gradients=True),
    ]


def _name(rows: int) -> str:
    return f"expert_linear/{rows}x{DIM}"


def forward(settings: Settings, rows: int) -> Variants:
    """Prepare all forms, each with the useful flops: 2 N k D F."""
    wide, half = operands(rows, DIM), operands(rows, DIM, torch.bfloat16)
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
    """Prepare forward and the gradients of x, weight, bias and gate."""
    wide = operands(rows, DIM)
    leaves = [tensor.requires_grad_() for tensor in (wide.x, wide.weight, wide.bias, wide.gate)]
    grad_y = inputs.normal(rows, DIM, seed=5)

    def step(form: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        y = form(*wide)
        return y.detach(), *torch.autograd.grad(y, leaves, grad_y)

    right = parity.same(step(by_reference))
    forms = {"ours": ours, **rivals.EAGER, "dense": rivals.dense, "_grouped_mm": rivals.grouped_mm}
    return {name: Variant(partial(step, form), right) for name, form in forms.items()}


def gpu_experiments(settings: Settings) -> list[Experiment]:
    """Narrow rows, which are limited by bytes, and wide ones, limited by products; float32 for the record."""
    found = []
    for rows, dim in ((170_000, 128), (170_000, 256), (65_536, 512), (65_536, 1024)):
        rows, dim = settings.size(rows, 200), settings.size(dim, dim // 16)
        name = f"cuda dispatch/{rows}x{dim} bfloat16"
        if dim <= settings.size(256, 16):
            source = "dispatch >= 2x (sort + _grouped_mm + index_add) at d <= 256"
            claim = speedup(f"{name}/grouped", source, "sort, _grouped_mm, index_add", 2.0)
        else:
            source = "dispatch >= 0.85x the grouped-GEMM floor at d >= 512"
            claim = Claim(f"{name}/floor", source, Ratio(("_grouped_mm alone",), ("ours",)), 0.85)
        found.append(Experiment(name, partial(gpu_forward, settings, rows, dim, torch.bfloat16), (claim,)))
    rows, dim = settings.size(170_000, 200), settings.size(256, 16)
    name = f"cuda dispatch/{rows}x{dim} float32"
    found.append(Experiment(name, partial(gpu_forward, settings, rows, dim, torch.float32), ()))
    return found


def gpu_forward(settings: Settings, rows: int, dim: int, dtype: torch.dtype) -> Variants:
    """Prepare forms that all start from the routing; only the floor gets rows already gathered and grouped."""
    given = operands(rows, dim, dtype, settings.device)
    x, weight, bias, index, gate = given
    plan = reference.expert_plan(index, NUM_EXPERTS)
    right = parity.same(reference.expert_linear(x, weight, bias, plan, gate))

    def variant(form: rivals.Dispatch) -> Callable[[], Variant]:
        return lambda: _runs(Variant(partial(form, *given), right))

    return {
        "ours": variant(ours)(),
        "ours, plan at hand": Variant(lambda: ops.expert_linear(x, weight, bias, plan, gate), right),
        "sort, _grouped_mm, index_add": optional(variant(rivals.grouped_mm)),
        "sort, cuBLAS per expert": variant(rivals.sort)(),
        "loop": variant(rivals.loop)(),
        "_grouped_mm alone": optional(lambda: _runs(Variant(_floor(x, weight, index)))),
    }


def _floor(x: Tensor, weight: Tensor, index: Tensor) -> Callable[[], Tensor]:
    order = torch.argsort(index.flatten(), stable=True)
    ends = torch.bincount(index.flatten(), minlength=NUM_EXPERTS).cumsum(0, dtype=torch.int32)
    grouped = x.index_select(0, order.div(K, rounding_mode="floor"))
    columns = weight.transpose(1, 2)
    return lambda: torch._grouped_mm(grouped, columns, offs=ends)


def _runs(variant: Variant) -> Variant:
    """Raise Missing where torch's grouped product does not support the type or the card."""
    try:
        variant.call()
    except (RuntimeError, NotImplementedError) as error:
        raise Missing(f"torch does not run it here: {str(error).splitlines()[0]}") from error
    return variant
