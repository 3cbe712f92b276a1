"""sparse_linear: a linear layer of rows of features that are mostly zeros."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..feature_rows import FeatureRows
from . import _dispatch as op
from ._sparse_rows import columns_for, expect_rows


def sparse_linear(x: FeatureRows, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply one linear layer, in time that follows the values other than 0.

    ``torch.nn.functional.linear`` for a first layer:

        y_i = weight x_i + bias

    Args:
        x: [N, Din].
        weight: [Dout, Din] float32 or bfloat16 (float64 in tests). One whose memory holds the weights of an input side
            by side (``weight.T.is_contiguous()``) is read in place.
        bias: [Dout] or None.

    Returns:
        y [N, Dout] in weight's dtype, accumulated in float32 (float64 for float64).

    Raises:
        ValueError: shapes do not fit each other.
        TypeError: dtypes differ, or x is not FeatureRows.
        GraphIndexError: a column of x is out of range.
        DerivativeError: values of x want a gradient.

    Gradients: weight and bias; none for x. They can be differentiated again.

    Deterministic: yes, forward and backward, bit for bit, for any number of threads.

    Examples:
        >>> x = FeatureRows.from_dense(torch.tensor([[0.0, 3.0]]))
        >>> sparse_linear(x, torch.tensor([[1.0, 2.0]]), torch.tensor([0.5])).tolist()
        [[6.5]]
    """
    name = "sparse_linear"
    expect_rows(name, x, weight, bias=bias)
    op.expect_dim(name, "weight", weight, 2, "[Dout, Din]")
    op.expect(x.shape[1] == weight.shape[1], name, "x", lambda: f"of {weight.shape[1]} columns", x.shape[1])
    op.expect_shape(name, "bias", bias, (weight.shape[0],), "to match 'weight'")
    if not op.native():
        op.expect_index(name, "columns", x.columns, x.num_sparse)
        return reference.sparse_linear(x, weight, bias)
    wide, columns = op.wide(weight), None
    if weight.requires_grad and torch.is_grad_enabled():
        columns = columns_for(name, x)
    values = None if x.values is None else x.values.to(wide)
    reverse = None if columns is None or columns.values is None else columns.values.to(wide)
    offsets, rows, order = (None, None, None) if columns is None else columns[:3]
    table = weight.T
    some = table[: x.num_sparse]
    y: Tensor = op.call("aggregate", some, x.offsets, x.columns, values, offsets, rows, reverse, order, public=name)
    if x.dense is not None:
        y = y + x.dense.to(weight.dtype) @ table[x.num_sparse :]
    if x.addend is not None:
        y = y + x.addend[0] @ (weight @ x.addend[1]).T
    return y if bias is None else y + bias
