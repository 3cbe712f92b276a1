"""Encoders of OGB molecules: atoms become vectors, bond types become rows of one table per expert.

Shapes: N nodes, E experts, T bond types, P pairs of bond types, D features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ArgumentError, GraphIndexError

ATOM_DIMS = (119, 5, 12, 12, 10, 6, 6, 2, 2)
BOND_DIMS = (5, 6, 2)


def _xavier_uniform(shape: tuple[int, ...]) -> Tensor:
    """Draw table(s) [..., rows, D], each as ``nn.init.xavier_uniform_`` fills an embedding of that size."""
    bound = math.sqrt(6.0 / (shape[-2] + shape[-1]))
    return torch.empty(shape).uniform_(-bound, bound)


class AtomEncoder(nn.Module):
    """Encode an atom as the sum of one embedding per feature.

    The tables are stacked in one weight, so that an atom is one bag of rows.

    Args:
        dim: D.
        feature_dims: number of values of each feature; the default is OGB's nine.

    Raises:
        GraphIndexError: a feature value is out of its range (checked on CPU; if compiled, a RuntimeError).

    Examples:
        >>> AtomEncoder(8)(torch.zeros(3, 9, dtype=torch.int64)).shape
        torch.Size([3, 8])
    """

    first_row: Tensor
    sizes: Tensor

    def __init__(self, dim: int, feature_dims: Sequence[int] = ATOM_DIMS) -> None:
        super().__init__()
        self.dim, self.feature_dims = dim, tuple(feature_dims)
        self.weight = nn.Parameter(torch.cat([_xavier_uniform((rows, dim)) for rows in feature_dims]))
        sizes = torch.tensor(self.feature_dims)
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("first_row", sizes.cumsum(0) - sizes, persistent=False)

    def forward(self, node_feat: Tensor) -> Tensor:
        """Encode ``node_feat`` [N, 9] int64 as [N, D]."""
        if node_feat.dim() != 2 or node_feat.shape[1] != len(self.feature_dims):
            raise ArgumentError(
                f"AtomEncoder: expected 'node_feat' of shape [N, {len(self.feature_dims)}], got {list(node_feat.shape)}"
            )
        # A value beyond its own table would silently read the next one.
        if node_feat.device.type == "cpu":
            known = (node_feat >= 0) & (node_feat < self.sizes)
            if torch.compiler.is_compiling():
                torch._assert_async(known.all(), "AtomEncoder: a value of 'node_feat' is out of its range")
            elif not known.all():
                place = int((~known).flatten().nonzero()[0])
                bound = self.feature_dims[place % len(self.feature_dims)]
                raise GraphIndexError.of("AtomEncoder", "node_feat", place, int(node_feat.flatten()[place]), bound)
        return F.embedding_bag(node_feat + self.first_row, self.weight, mode="sum")

    def extra_repr(self) -> str:
        return f"dim={self.dim}, feature_dims={self.feature_dims}"


class BondEncoder(nn.Module):
    """Make one vector per bond type and expert: the sum of an embedding per bond feature.

    A bond (a, b, c) has the type (a * 6 + b) * 2 + c, so the 60 sums are computed once per step and an edge costs one
    row. A two-hop path sums embeddings of its own for its first and its second bond.

    Args:
        num_experts: E.
        dim: D.
        bond_dims: number of values of each bond feature.
        hops: bonds on a path, 1 or 2.

    Examples:
        >>> BondEncoder(4, dim=8, bond_dims=(5, 6, 2), hops=1)().shape
        torch.Size([4, 60, 8])
    """

    def __init__(self, num_experts: int, dim: int, bond_dims: Sequence[int] = BOND_DIMS, hops: int = 1) -> None:
        super().__init__()
        self.num_experts, self.dim, self.bond_dims, self.hops = num_experts, dim, tuple(bond_dims), hops
        rows = self.bond_dims * hops
        self.tables = nn.ParameterList([nn.Parameter(_xavier_uniform((num_experts, r, dim))) for r in rows])

    @property
    def num_types(self) -> int:
        """Number of types of one bond, T."""
        return math.prod(self.bond_dims)

    def forward(self, pair_types: Tensor | None = None) -> Tensor:
        """Return the table [E, T, D]; with ``hops=2`` the table [E, P, D] of the pairs ``pair_types`` [P, 2] int64."""
        width = len(self.bond_dims)
        first_ETD = self._sums(list(self.tables)[:width])
        if self.hops == 1:
            return first_ETD
        if pair_types is None:
            raise ArgumentError("BondEncoder: two-hop bonds need 'pair_types' [P, 2]; batch with two_hop=True")
        second_ETD = self._sums(list(self.tables)[width:])
        return _take_types(first_ETD, pair_types[:, 0]) + _take_types(second_ETD, pair_types[:, 1])

    def _sums(self, tables: list[Tensor]) -> Tensor:
        table_ETD = tables[0]
        for more in tables[1:]:
            table_ETD = (table_ETD.unsqueeze(2) + more.unsqueeze(1)).flatten(1, 2)
        return table_ETD

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, dim={self.dim}, bond_dims={self.bond_dims}, hops={self.hops}"


def _take_types(table_ETD: Tensor, types_P: Tensor) -> Tensor:
    """Take columns of a table in the way whose gradient adds in a fixed order, which differs by device."""
    if table_ETD.device.type == "cpu":
        return table_ETD.index_select(1, types_P)
    return table_ETD[:, types_P]
