"""FeatureRows holds what its source holds, whatever form and order that has, and refuses what is no matrix."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch

from gmoe_ext import FeatureRows
from gmoe_ext.errors import ArgumentError, GraphIndexError


def dense(rows=23, columns=11, seed=0, binary=False):
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(rows, columns, generator=generator) < 0.3
    values = torch.ones(rows, columns) if binary else torch.randn(rows, columns, generator=generator)
    return torch.where(kept, values, 0.0)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("shape", [(23, 11), (0, 5), (4, 0), (1, 1)])
def test_every_source_gives_the_same_rows(shape, binary):
    x = dense(*shape, binary=binary)
    scipy_x = scipy.sparse.csr_matrix(x.numpy())
    rows = [
        FeatureRows.from_dense(x),
        FeatureRows.from_scipy(scipy_x.tocoo()),
        FeatureRows.from_scipy(scipy_x.tocsc()),
        FeatureRows.from_torch(x.to_sparse_coo()),
    ]
    for one in rows:
        assert torch.equal(one.to_dense(), x)
        assert one.shape == x.shape and one.dtype == torch.float32 and len(one) == len(x)
        assert torch.equal(one.columns, rows[0].columns) and one.columns.dtype == torch.int32
    stored = x.count_nonzero()
    assert all((one.values is None) == (binary or stored == 0) for one in rows)


def test_repeated_entries_add_up_and_zeros_go():
    columns, values = torch.tensor([2, 0, 2, 1, 1]), torch.tensor([1.0, 0.0, 4.0, 3.0, -3.0])
    rows = FeatureRows.from_csr(torch.tensor([0, 3, 5]), columns, values, 3)
    assert rows.to_dense().tolist() == [[0.0, 0.0, 5.0], [0.0, 0.0, 0.0]]
    assert rows.columns.tolist() == [2]


def test_rows_with_dense_columns_select_normalise_and_have_norms():
    x, more = dense(), torch.randn(23, 3, generator=torch.Generator().manual_seed(1))
    rows, whole = FeatureRows.from_dense(x).cat(more), torch.cat([x, more], dim=1)
    assert torch.equal(rows.to_dense(), whole) and rows.num_dense == 3 and rows.shape == (23, 14)
    for nodes in (torch.tensor([5, 5, 0, 22]), torch.tensor([], dtype=torch.int64), torch.arange(23) % 2 == 0):
        assert torch.equal(rows[nodes].to_dense(), whole[nodes])
    torch.testing.assert_close(rows.norms(), whole.norm(dim=1))
    torch.testing.assert_close(
        rows.row_normalized().to_dense(), whole / whole.abs().sum(1, keepdim=True), rtol=1e-6, atol=1e-7
    )
    assert torch.equal(rows.cat(more).to_dense(), torch.cat([whole, more], dim=1))


def test_columns_are_those_of_the_matrix_and_follow_new_values():
    rows = FeatureRows.from_dense(dense())
    columns, again = rows.by_column(), rows.with_values(torch.arange(len(rows.columns)).float(), None)
    assert columns.values is not None and rows.by_column() is columns
    for one in (rows, again):
        by_column, x = one.by_column(), one.to_dense()
        for c in range(one.num_sparse):
            entries = slice(int(by_column.offsets[c]), int(by_column.offsets[c + 1]))
            assert torch.equal(one.columns[by_column.order[entries]], torch.full_like(by_column.rows[entries], c))
            assert torch.equal(x[by_column.rows[entries].long(), c], by_column.values[entries])
    assert again.by_column().order is columns.order  # sorted once


def test_what_is_kept_does_not_depend_on_the_mode():
    rows = FeatureRows.from_dense(dense())
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        norms, columns = rows.norms(), rows.by_column()
    assert not norms.is_inference() and norms.dtype == torch.float32
    assert not any(tensor.is_inference() for tensor in columns if tensor is not None)


def test_wrong_rows_are_refused():
    offsets, columns, values = torch.tensor([0, 1, 2]), torch.tensor([0, 2]), torch.tensor([1.0, 2.0])
    with pytest.raises(GraphIndexError, match="'columns' at position 1 is 2, expected 0 <= index < 2"):
        FeatureRows.from_csr(offsets, columns, values, 2)
    for wrong in ([1, 2, 2], [0, 2, 1], [0, 1, 3], []):
        with pytest.raises(ArgumentError, match="'offsets' to rise from 0 to 2"):
            FeatureRows.from_csr(torch.tensor(wrong, dtype=torch.int64), columns, values, 3)
    with pytest.raises(ArgumentError, match="'values' of shape"):
        FeatureRows.from_csr(offsets, columns, values[:1], 3)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ArgumentError, match="'values' that are finite"):
            FeatureRows.from_csr(offsets, columns, torch.tensor([1.0, bad]), 3)
    with pytest.raises(ArgumentError, match="'num_columns'"):
        FeatureRows.from_csr(offsets, columns, values, -1)
    with pytest.raises(ArgumentError, match="'dense' of shape"):
        FeatureRows.from_dense(dense()).cat(torch.zeros(2, 3))
    with pytest.raises(ArgumentError, match="'x'"):
        FeatureRows.from_dense(torch.zeros(3))


def test_integers_and_booleans_become_float32():
    counts = np.array([[0, 3], [1, 0]])
    assert FeatureRows.from_scipy(scipy.sparse.csr_matrix(counts)).values.tolist() == [3.0, 1.0]
    assert FeatureRows.from_dense(torch.from_numpy(counts) > 0).values is None
