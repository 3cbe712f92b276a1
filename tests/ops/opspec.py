"""What the generic contract tests need to know about an operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from gmoe_ext import _native, ops, reference

from .samples import Sample


@dataclass(frozen=True)
class BadCase:
    """A change that spoils a good sample, and the error that must name the argument."""

    label: str
    change: Callable[[Sample], dict[str, Any]]
    error: type[Exception]
    argument: str


@dataclass(frozen=True)
class OpSpec:
    """The properties of one operator that the contract tests need.

    Attributes:
        name: of the public function, the reference, the raw operator and every file of the operator.
        samples: argument sets in float64 over all sizes and shapes that matter.
        rows: a sample of about n rows, for tests that need one of a certain size; always the same for equal n.
        differentiable: paths of the tensors that get a gradient.
        detached: paths of the floating tensors that must not get one.
        scores: where the result ranks: the float64 [N, E] that was ranked, for judging near ties.
        second_derivative: paths whose gradient is itself differentiable; for the others it is refused.
        bad: wrong arguments.
        indices: paths of index tensors with the bound each is checked against.
        followed: those of which a device checks only the entries it follows.
        runs_on: the operator that a device names when it reports a bad index; None means this one.
        row_of: argument whose rows are poisoned with NaN and Inf in turn.
        autocast: dtype the operator runs in under autocast; None keeps the dtype of its inputs.
        wide: results, by name, that stay float32 for bfloat16 arguments because rounding would spoil these sums.
        static_shape: whether the shape of the result follows from the shapes of the arguments.
    """

    name: str
    samples: Callable[[], Iterator[Sample]]
    rows: Callable[[int], Sample]
    differentiable: tuple[str, ...] = ()
    detached: tuple[str, ...] = ()
    scores: Callable[[Sample], Tensor] | None = None
    second_derivative: tuple[str, ...] = ()
    bad: tuple[BadCase, ...] = ()
    indices: dict[str, Callable[[Sample], int]] | None = None
    followed: tuple[str, ...] = ()
    runs_on: str | None = None
    row_of: str | None = None
    autocast: torch.dtype | None = None
    wide: tuple[str, ...] = ()
    static_shape: bool = True

    def __repr__(self) -> str:
        return self.name

    def public(self, sample: Sample) -> Any:
        return getattr(ops, self.name)(**sample.args)

    def truth(self, sample: Sample) -> Any:
        return getattr(reference, self.name)(**sample.args)

    def leaves(self, sample: Sample) -> dict[str, Tensor]:
        """Copies, that want a gradient, of the tensors of a sample that can have one."""
        paths = [path for path in self.differentiable if path in sample.tensors()]
        return {path: sample[path].detach().clone().requires_grad_() for path in paths}

    def need_compiled(self) -> None:
        """Skip a test of what only the compiled operator promises; test_layout.py holds that every operator is one."""
        if _native.backend() != "native" or not hasattr(torch.ops.gmoe, self.name):
            pytest.skip(f"{self.name} runs on the reference here")

    @property
    def floating(self) -> bool:
        """Whether the operator has floating arguments, and so a dtype."""
        return any(tensor.is_floating_point() for tensor in self.rows(2).tensors().values())
