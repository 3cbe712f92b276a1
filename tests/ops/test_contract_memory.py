"""No operator reads or writes what is not there: freed memory, no gradient to write, no room for the result."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gmoe_ext import ops

from .opinfo import OPS
from .opspec import OpSpec
from .test_contract_dispatch import raw_calls


@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize("spec", OPS, ids=str)
def test_a_tensor_whose_memory_was_freed_is_refused(spec: OpSpec, left: int, device: torch.device) -> None:
    """FSDP resizes storages to 0; a view of a storage that became too small is the same."""
    spec.need_compiled()
    for name, (op, args) in raw_calls(spec, spec.rows(9).to(torch.float32).on(device)).items():
        refused = 0
        for position, value in enumerate(args):
            if not isinstance(value, Tensor) or value.numel() < 2:
                continue
            freed = value.clone()
            freed.untyped_storage().resize_(left * freed.element_size())
            given = [*args[:position], freed, *args[position + 1 :]]
            argument = op._schema.arguments[position].name
            if argument.startswith("transpose_"):
                op(*given)  # for gradients alone: not read
                continue
            with pytest.raises(RuntimeError, match=f"'{argument}' of shape .* it was freed or resized"):
                op(*given)
            refused += 1
        assert refused, name


@pytest.mark.parametrize("layout", ["transposed", "shifted", "strided"])
def test_a_view_into_a_storage_that_is_too_small_is_refused(layout: str) -> None:
    rows = torch.randn(6, 12)
    x = {"transposed": rows.T, "shifted": rows.flatten()[2:72].view(10, 7), "strided": rows[:, ::2]}[layout]
    last = 1 + x.storage_offset() + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    x.untyped_storage().resize_(4 * last)
    ops.topk_softmax(x, 2)  # as long as the last element is there
    x.untyped_storage().resize_(4 * (last - 1))
    with pytest.raises(RuntimeError, match="freed or resized"):
        ops.topk_softmax(x, 2)


@pytest.mark.parametrize("spec", OPS, ids=str)
def test_gradient_operators_write_only_what_is_asked_for(spec: OpSpec, device: torch.device) -> None:
    """Every combination of flags: the wanted gradients are the same bits, the others are empty."""
    spec.need_compiled()
    for _, (op, args) in raw_calls(spec, spec.rows(9).to(torch.float32).on(device)).items():
        flags = [i for i, a in enumerate(op._schema.arguments) if a.name.startswith("want_")]
        if not flags:
            continue
        whole = op(*(True if i in flags else value for i, value in enumerate(args)))
        for choice in range(2 ** len(flags)):
            wanted = [bool(choice >> n & 1) for n in range(len(flags))]
            found = op(*(wanted[flags.index(i)] if i in flags else value for i, value in enumerate(args)))
            for want, got, full in zip(wanted, found, whole, strict=True):
                assert torch.equal(got, full) if want else got.numel() == 0


def test_a_result_that_does_not_fit_names_its_size() -> None:
    n = 10**6
    plan = ops.expert_plan(torch.zeros(n, 1, dtype=torch.int64), 1)
    with pytest.raises(
        RuntimeError, match=r"out of memory: tried to allocate 4000000000000 bytes .*\[1000000, 1000000\]"
    ):
        ops.expert_linear(torch.zeros(n, 4), torch.zeros(1, 1, 4).expand(1, n, 4), None, plan, torch.ones(n, 1))
    with pytest.raises(RuntimeError, match=r"out of memory: tried to allocate \d+ bytes"):
        ops.expert_plan(torch.zeros(1, 1, dtype=torch.int64), 2**62)
