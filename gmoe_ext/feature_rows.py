"""FeatureRows: rows of features that are mostly zeros, such as bags of words, with dense columns to their right.

Shapes: N rows, S sparse columns, P dense columns, V stored values, K slots of a row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .errors import ArgumentError, ArgumentTypeError, expect
from .indices import check_ascending, check_range, check_size, gather_ranges, plain_mode, row_offsets

_OP = "FeatureRows"
_FLOATING = (torch.float32, torch.float64, torch.bfloat16)


class Columns(NamedTuple):
    """Stored values by column: those of column c are the entries ``order[offsets[c]:offsets[c + 1]]``.

    Attributes:
        offsets: int64 [S + 1].
        rows: int32 [V], row of each value, ascending within a column.
        order: int64 [V], its place in the rows.
        values: [V], or None for 1.
    """

    offsets: Tensor
    rows: Tensor
    order: Tensor
    values: Tensor | None


class FeatureRows:
    """A matrix [N, S + P]: S columns of which only values other than 0 are stored, then P dense ones.

    ``from_dense``, ``from_scipy``, ``from_torch`` and ``from_csr`` make one and check everything; the constructor
    trusts its arguments. It does not change, takes no gradient, and what is derived from it is kept.

    Attributes:
        offsets: int64 [N + 1]; row i holds the values offsets[i]:offsets[i + 1].
        columns: int32 [V], ascending within a row.
        values: [V] floating; None says that all are 1. [V, K] where every slot of a row has values of its own.
        num_sparse: S.
        dense: [N, P] floating, or None; [N, K, P] beside values [V, K].
        addend: tensors a [N, R] and b [S + P, R], of which a b^T is added to the matrix; None adds nothing.

    Examples:
        >>> rows = FeatureRows.from_dense(torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]]))
        >>> rows.shape, rows.columns.tolist()
        (torch.Size([2, 3]), [1, 0])
    """

    def __init__(
        self, offsets: Tensor, columns: Tensor, values: Tensor | None, num_sparse: int, dense: Tensor | None = None
    ) -> None:
        self.offsets, self.columns, self.values = offsets, columns, values
        self.num_sparse, self.dense = num_sparse, dense
        self.addend: tuple[Tensor, Tensor] | None = None
        self._kept: dict[str, Any] = {}

    @classmethod
    def from_csr(cls, offsets: Tensor, columns: Tensor, values: Tensor | None, num_columns: int) -> FeatureRows:
        """Take compressed rows: values that stand in one place twice are added up, zeros are left out.

        Args:
            offsets: integers [N + 1] that rise from 0 to V.
            columns: integers [V] in [0, num_columns), in any order within a row.
            values: finite numbers [V], which become float32 unless they are float64 or bfloat16; None means 1.
            num_columns: S.

        Raises:
            GraphIndexError: a column is out of its range; the first bad one is named.
            ValueError: wrong shapes, or values that are not finite.
        """
        num_columns, num_values = check_size("num_columns", num_columns, _OP), columns.shape[0]
        expect(num_columns < 2**31, _OP, "num_columns", "below 2^31", num_columns)
        ends = offsets.dim() == 1 and len(offsets) > 0 and int(offsets[0]) == 0 and int(offsets[-1]) == num_values
        rises = ends and not bool((offsets.diff() < 0).any())
        expect(rises, _OP, "offsets", f"to rise from 0 to {num_values}", offsets)
        check_range(_OP, "columns", columns, num_columns)
        values = torch.ones_like(columns, dtype=torch.float32) if values is None else values.detach()
        expect(values.shape == columns.shape, _OP, "values", f"of shape {list(columns.shape)}", list(values.shape))
        values = values if values.dtype in _FLOATING else values.to(torch.float32)
        expect(bool(values.isfinite().all()), _OP, "values", "that are finite", "others")
        width = max(num_columns, 1)
        with plain_mode(columns.device), torch.no_grad():
            rows = torch.repeat_interleave(offsets.long().diff(), output_size=num_values)
            place = rows * width + columns.long()
            if not bool((place.diff() > 0).all()):
                place, which = torch.unique(place, return_inverse=True)
                values = values.new_zeros(len(place)).index_add_(0, which, values)
            stored = values != 0
            if not bool(stored.all()):
                place, values = place[stored], values[stored]
            ones = values.dtype == torch.float32 and bool((values == 1).all())
            offsets = row_offsets(place // width, len(offsets) - 1)
            return cls(offsets, (place % width).to(torch.int32), None if ones else values.contiguous(), num_columns)

    @classmethod
    def from_dense(cls, x: Tensor) -> FeatureRows:
        """Take the values of x [N, S] that are not 0."""
        expect(isinstance(x, Tensor) and x.dim() == 2, _OP, "x", "a tensor of shape [N, S]", x)
        stored = x != 0
        columns = stored.nonzero()[:, 1]
        offsets = torch.zeros(len(x) + 1, dtype=torch.int64, device=x.device)
        offsets[1:] = stored.sum(1).cumsum(0)
        return cls.from_csr(offsets, columns, x[stored], x.shape[1])

    @classmethod
    def from_scipy(cls, matrix: Any) -> FeatureRows:
        """Take a sparse matrix of SciPy in any of its formats."""
        csr = matrix.tocsr()
        offsets, columns, values = map(torch.from_numpy, (csr.indptr, csr.indices, csr.data))
        return cls.from_csr(offsets, columns, values, csr.shape[1])

    @classmethod
    def from_torch(cls, matrix: Tensor) -> FeatureRows:
        """Take a sparse tensor [N, S] of torch in any of its layouts."""
        csr = matrix.to_sparse_csr()
        return cls.from_csr(csr.crow_indices(), csr.col_indices(), csr.values(), csr.shape[1])

    @property
    def num_dense(self) -> int:
        """P."""
        return 0 if self.dense is None else self.dense.shape[-1]

    @property
    def shape(self) -> torch.Size:
        """[N, S + P]."""
        return torch.Size([len(self), self.num_sparse + self.num_dense])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the values."""
        known = self.values if self.values is not None else self.dense
        return torch.float32 if known is None else known.dtype

    @property
    def device(self) -> torch.device:
        """The device of all tensors."""
        return self.columns.device

    @property
    def is_cpu(self) -> bool:
        """Whether it is on the CPU."""
        return self.columns.is_cpu

    def __len__(self) -> int:
        return self.offsets.shape[0] - 1

    def dim(self) -> int:
        """2, as of any matrix."""
        return 2

    def new_zeros(self, size: tuple[int, ...]) -> Tensor:
        """Make zeros of this dtype and on this device."""
        return torch.zeros(size, dtype=self.dtype, device=self.device)

    def __getitem__(self, nodes: Tensor) -> FeatureRows:
        """Select rows: ids [B] or a mask [N]."""
        self._expect_plain()
        with plain_mode(self.device):
            ids = torch.arange(len(self), device=self.device)[nodes]
            counts = self.offsets.diff()[ids]
            entries = gather_ranges(self.offsets[ids], counts)
            offsets = torch.zeros(len(ids) + 1, dtype=torch.int64, device=self.device)
            offsets[1:] = counts.cumsum(0)
            values = None if self.values is None else self.values[entries]
            dense = None if self.dense is None else self.dense[ids]
            return FeatureRows(offsets, self.columns[entries], values, self.num_sparse, dense)

    def cat(self, dense: Tensor) -> FeatureRows:
        """Append dense columns [N, P]."""
        self._expect_plain()
        expect(dense.dim() == 2 and len(dense) == len(self), _OP, "dense", f"of shape [{len(self)}, P]", dense.shape)
        dense = dense.to(self.dtype)
        joined = dense if self.dense is None else torch.cat([self.dense, dense], dim=1)
        return self._with(self.values, joined)

    def with_values(self, values: Tensor | None, dense: Tensor | None) -> FeatureRows:
        """Put other values in the places of these."""
        self._expect_plain()
        for name, given, held in (("values", values, self.columns), ("dense", dense, self.dense)):
            if given is not None and (held is None or len(given) != len(held)):
                raise ArgumentError(f"{_OP}: expected '{name}' in the places of the present ones, got {given.shape}")
        return self._with(values, dense)

    def plus(self, a_NR: Tensor, b_DR: Tensor) -> FeatureRows:
        """Add a b^T, which is never made: linear layers multiply it from the right."""
        other = self._with(self.values, self.dense)
        other.addend = (a_NR, b_DR)
        return other

    def row_normalized(self) -> FeatureRows:
        """Divide each row by the sum of its absolute values; zero rows stay zero."""
        total = self._row_sums(lambda x: x.abs()).clamp_min(1e-12)
        return self._divided(total)

    def unit_rows(self, eps: float = 1e-12) -> FeatureRows:
        """Divide each row by its Euclidean norm, at least ``eps``."""
        norm = self.norms().clamp_min(eps)
        return self._with(
            self._values() / norm[self._rows()], None if self.dense is None else self.dense / norm[:, None]
        )

    def norms(self) -> Tensor:
        """Return the Euclidean norm of each row, [N]."""
        if "norms" not in self._kept:
            with plain_mode(self.device), torch.no_grad():
                self._kept["norms"] = self._row_sums(lambda x: x.square()).sqrt()
        norms: Tensor = self._kept["norms"]
        return norms

    def by_column(self) -> Columns:
        """Return the stored values by column."""
        if "by_column" not in self._kept:
            with plain_mode(self.device):
                columns, order = torch.sort(self.columns, stable=True)
                # The trusted constructor did not check them.
                check_ascending("FeatureRows.by_column", "columns", self.columns, columns, self.num_sparse)
                offsets = row_offsets(columns, self.num_sparse)
                values = None if self.values is None or self.values.dim() > 1 else self.values[order]
                self._kept["by_column"] = Columns(offsets, self._rows()[order].to(torch.int32), order, values)
        kept: Columns = self._kept["by_column"]
        if kept.values is None and self.values is not None and self.values.dim() == 1:
            kept = kept._replace(values=self.values[kept.order])
        return kept

    def to(self, device: torch.device | str) -> FeatureRows:
        """Move to another device, without what was derived; return self if it is there already."""
        if torch.empty(0, device=device).device == self.device:
            return self
        self._expect_plain()
        moved = [None if t is None else t.to(device) for t in (self.offsets, self.columns, self.values, self.dense)]
        offsets, columns, values, dense = moved
        assert offsets is not None and columns is not None
        return FeatureRows(offsets, columns, values, self.num_sparse, dense)

    def to_dense(self) -> Tensor:
        """Make the whole matrix [N, S + P]; with values per slot, [N, K, S + P]."""
        values = self._values()
        x = values.new_zeros((len(self), self.num_sparse, *values.shape[1:]))
        x = x.index_put((self._rows(), self.columns.long()), values)
        x = x if values.dim() == 1 else x.transpose(1, 2)
        x = x if self.dense is None else torch.cat([x, self.dense.to(x)], dim=-1)
        return x if self.addend is None else x + self.addend[0] @ self.addend[1].T

    def __repr__(self) -> str:
        size = f"{len(self):,} x {self.num_sparse:,} + {self.num_dense:,}"
        return f"FeatureRows({size}, {self.columns.shape[0]:,} values, {self.dtype}, {self.device})"

    def _with(self, values: Tensor | None, dense: Tensor | None) -> FeatureRows:
        other = FeatureRows(self.offsets, self.columns, values, self.num_sparse, dense)
        if "by_column" in self._kept:
            other._kept["by_column"] = self._kept["by_column"]._replace(values=None)
        return other

    def _expect_plain(self) -> None:
        expect(self.addend is None, _OP, "addend", "to be None: only linear layers multiply what is added", "one")

    def _divided(self, by_N: Tensor) -> FeatureRows:
        dense = None if self.dense is None else self.dense / by_N[:, None]
        return self._with(self._values() / by_N[self._rows()], dense)

    def _values(self) -> Tensor:
        return torch.ones_like(self.columns, dtype=self.dtype) if self.values is None else self.values

    def _rows(self) -> Tensor:
        return torch.repeat_interleave(self.offsets.diff(), output_size=self.columns.shape[0])

    def _row_sums(self, of: Any) -> Tensor:
        self._expect_plain()
        sums = torch.segment_reduce(of(self._values()), "sum", offsets=self.offsets, axis=0, initial=0.0)
        return sums if self.dense is None else sums + of(self.dense).sum(1)


# What layers take that work on features: a matrix, or rows that are mostly zeros.
Features = Tensor | FeatureRows


def dense_of(x: Features) -> Tensor:
    """Make a tensor of features of either kind."""
    return x.to_dense() if isinstance(x, FeatureRows) else x


def expect_feature_rows(name: str, x: object) -> None:
    """Raise ``TypeError`` unless a function was given FeatureRows."""
    if not isinstance(x, FeatureRows):
        raise ArgumentTypeError(
            f"{name}: expected 'x' to be gmoe_ext.FeatureRows, got {type(x).__name__}; fix: FeatureRows.from_dense(x)"
        )
