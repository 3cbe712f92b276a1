"""Shared by the operators on FeatureRows: checks, and the columns that gradients need."""

from __future__ import annotations

from torch import Tensor

from ..errors import ArgumentError, DerivativeError, GraphIndexError
from ..feature_rows import Columns, FeatureRows, expect_feature_rows
from . import _dispatch as op


def expect_rows(name: str, x: FeatureRows, weight: Tensor, **others: Tensor | None) -> None:
    """Check that x holds rows without a gradient, and that weight and the others are floating, of one dtype."""
    expect_feature_rows(f"gmoe::{name}", x)
    op.expect_floating(name, "weight", weight, **others)
    op.expect_device(name, "x", x.columns, "weight", weight)
    if any(t is not None and t.requires_grad for t in (x.values, x.dense)):
        raise DerivativeError(f"gmoe::{name} has no derivative for 'x'; fix: pass a dense x to the dense operator")


def expect_no_addend(name: str, x: FeatureRows) -> None:
    """Check that nothing is added to the stored values, for operators that read these alone."""
    if x.addend is not None:
        raise ArgumentError(f"gmoe::{name}: expected 'x' without an addend; fix: pass x.to_dense()")


def columns_for(name: str, x: FeatureRows) -> Columns:
    """Return the columns of x for a gradient."""
    try:
        return x.by_column()
    except GraphIndexError as error:
        # Sorting runs before the operator's own check, so the error is reported under the operator's name.
        raise GraphIndexError(str(error).replace("FeatureRows.by_column", f"gmoe::{name}", 1)) from None
