"""Compare results with gmoe_ext.reference on the very inputs that are timed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gmoe_ext import _native
from gmoe_ext.train.fit_state import Task
from gmoe_ext.train.tasks.student import StudentTask

from .claim import Mismatch

# Sums of some hundred float32 products in another order; bfloat16 keeps 8 bits.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float64: 1e-10}
# Rows whose k-th and next expert are closer than float32 can tell may go either way.
TIED_ROWS = 1e-4


@contextmanager
def on_reference() -> Iterator[None]:
    """Run gmoe_ext.ops on the reference, as they run where nothing was compiled."""
    compiled = _native.available
    _native.available = False
    try:
        yield
    finally:
        _native.available = compiled


def same(expected: Tensor | Sequence[Tensor]) -> Callable[[Any], None]:
    """Make a check that one or several results equal the expected ones up to rounding, relative to each row's RMS."""
    wanted = [expected] if isinstance(expected, Tensor) else list(expected)

    def check(result: Any) -> None:
        got = [result] if isinstance(result, Tensor) else list(result)
        if len(got) != len(wanted):
            raise Mismatch(f"{len(got)} results, the reference has {len(wanted)}")
        for place, (mine, theirs) in enumerate(zip(got, wanted, strict=True)):
            _compare(mine, theirs, f"result {place}" if len(wanted) > 1 else "result")

    return check


def _compare(mine: Tensor, theirs: Tensor, what: str) -> None:
    if mine.shape != theirs.shape:
        raise Mismatch(f"{what} has shape {list(mine.shape)}, the reference {list(theirs.shape)}")
    if theirs.numel() == 0:
        return
    tolerance = TOLERANCE[mine.dtype]
    # Rows are sums of different length: an error is measured against the size of its own row.
    wide = mine.detach().float().reshape(len(mine) if mine.dim() else 1, -1)
    base = theirs.detach().float().reshape(wide.shape)
    size = base.square().mean(1).sqrt().clamp_min(float(base.square().mean().sqrt()) * 0.1).clamp_min(1e-20)
    error = float(((wide - base).abs().amax(1) / size).nan_to_num(torch.inf).max())
    # The largest of many rounding errors lies above their RMS.
    if not error <= 10 * tolerance:
        raise Mismatch(f"{what}: error {error:.2g} of the row's size, at most {10 * tolerance:.2g} is rounding")


def same_routing(gate_NK: Tensor, index_NK: Tensor) -> Callable[[Any], None]:
    """Make a check of (gate [N, k], index [N, k]), up to the order of experts that float32 cannot tell apart."""

    def check(result: Any) -> None:
        gate, index = result[0], result[1]
        _compare(gate, gate_NK, "gate")
        same_index(index_NK)(index)

    return check


def same_index(index_NK: Tensor) -> Callable[[Any], None]:
    """Make a check of the chosen experts alone, up to ties."""

    def check(result: Any) -> None:
        wanted = index_NK.reshape(len(index_NK), -1)
        index = torch.as_tensor(result).reshape(wanted.shape)
        differ = int((index != wanted).any(1).sum())
        if differ > TIED_ROWS * len(index_NK):
            raise Mismatch(f"index differs from the reference in {differ} of {len(index_NK)} rows")

    return check


def same_step(expected: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], None]:
    """Make a check of a training step's loss and gradients by their norms.

    Rounding errors grow through the layers, and a gradient that is zero up to rounding (a bias before a BatchNorm) has
    no digits to compare: it is measured against the largest.
    """
    largest = max(float(theirs.norm()) for theirs in expected)

    def check(result: Sequence[Tensor]) -> None:
        if len(result) != len(expected):
            raise Mismatch(f"{len(result)} gradients, the reference has {len(expected)}")
        for place, (mine, theirs) in enumerate(zip(result, expected, strict=True)):
            error = float((mine - theirs).norm())
            if not error <= 1e-2 * float(theirs.norm()) + 1e-4 * largest:
                what = f"gradient {place}" if place else "loss"
                raise Mismatch(f"{what} of the first step: off by {error:.2g} of {float(theirs.norm()):.2g}")

    return check


def first_epoch(task: Task) -> int:
    """Return the first epoch in which rows are routed to experts."""
    return task.pretrain_epochs if isinstance(task, StudentTask) else 0


def first_step(task: Task) -> list[Tensor]:
    """Return loss and gradients of the first batch, with seeded noise, on a copy whose memories may move."""
    trial = copy.deepcopy(task.model).train()
    model, task.model = task.model, trial
    if isinstance(task, StudentTask):
        task.learners = trial.learners()
    try:
        task.enter_epoch(first_epoch(task))
        torch.manual_seed(1)
        loss = task.losses(task.load(next(iter(task.batches(first_epoch(task))))))["loss"]
        weights = [weight for weight in trial.parameters() if weight.requires_grad]
        found = torch.autograd.grad(loss, weights, allow_unused=True)
    finally:
        task.model = model
        if isinstance(task, StudentTask):
            task.learners = model.learners()
    return [loss.detach(), *(grad for grad in found if grad is not None)]
