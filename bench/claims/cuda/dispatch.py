"""expert_linear against sorting, torch's grouped product and an addition, and against that product alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from gmoe_ext import ops, reference

from ...rivals import dispatch as rivals
from .. import inputs, parity
from ..claim import Claim, Experiment, Missing, Ratio, Variant, Variants, optional, speedup
from ..settings import Settings

NUM_EXPERTS, K = 8, 3


def experiments(settings: Settings) -> list[Experiment]:
    """Narrow rows, where bytes decide, and wide ones, where products do; float32 for the record."""
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
        found.append(Experiment(name, partial(forward, settings, rows, dim, torch.bfloat16), (claim,)))
    rows, dim = settings.size(170_000, 200), settings.size(256, 16)
    name = f"cuda dispatch/{rows}x{dim} float32"
    found.append(Experiment(name, partial(forward, settings, rows, dim, torch.float32), ()))
    return found


class Operands(NamedTuple):
    """What every form takes."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    index: Tensor  # type: ignore[assignment]
    gate: Tensor

    @classmethod
    def random(cls, device: str, rows: int, dim: int, dtype: torch.dtype) -> Operands:
        """Random rows, weights of an average linear layer, a uniform routing."""
        gate, index = inputs.routing(rows, NUM_EXPERTS, K, seed=3)
        weight = inputs.normal(NUM_EXPERTS, dim, dim, seed=1) / dim**0.5
        return cls(
            inputs.normal(rows, dim, seed=0).to(device, dtype),
            weight.to(device, dtype),
            inputs.normal(NUM_EXPERTS, dim, seed=2).to(device, dtype),
            index.to(device),
            gate.to(device, dtype),
        )


def ours(x: Tensor, weight: Tensor, bias: Tensor, index: Tensor, gate: Tensor) -> Tensor:
    """Group, then multiply."""
    return ops.expert_linear(x, weight, bias, ops.expert_plan(index, len(weight)), gate)


def forward(settings: Settings, rows: int, dim: int, dtype: torch.dtype) -> Variants:
    """All take the routing itself; the floor gets rows that are gathered and grouped already."""
    operands = Operands.random(settings.device, rows, dim, dtype)
    x, weight, bias, index, gate = operands
    plan = reference.expert_plan(index, NUM_EXPERTS)
    right = parity.same(reference.expert_linear(x, weight, bias, plan, gate))

    def variant(form: rivals.Dispatch) -> Callable[[], Variant]:
        return lambda: _runs(Variant(partial(form, *operands), right))

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
    """Torch's grouped product is not made for every type and every card."""
    try:
        variant.call()
    except (RuntimeError, NotImplementedError) as error:
        raise Missing(f"torch does not run it here: {str(error).splitlines()[0]}") from error
    return variant
