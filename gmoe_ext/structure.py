"""Structure: what depends on the edges of a graph alone, made when it is first asked for and kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .indices import check_ascending, plain_mode, row_offsets

KEPT = ("rows", "edges_by_type", "transpose_order", "transposed", "transposed_by")


class Structure:
    """The edges of a graph in rows; graphs that differ only in weight share one.

    ``kept`` maps names in ``KEPT``, most of them methods, to their results; ``transposed_by`` is the order that made
    these rows a transpose.
    """

    def __init__(self, offsets: Tensor, columns: Tensor, edge_type: Tensor | None, num_edge_types: int) -> None:
        self.offsets, self.columns = offsets, columns
        self.edge_type, self.num_edge_types = edge_type, num_edge_types
        self.kept: dict[str, Any] = {}

    def rows(self) -> Tensor:
        """Destination of each edge, [M], ascending, in the dtype of the columns."""
        rows: Tensor = self._keep("rows", self._make_rows)
        return rows

    def edges_by_type(self) -> tuple[Tensor, Tensor]:
        """Offsets [T + 1] of the types, and the edges [M] in their order."""
        grouped: tuple[Tensor, Tensor] = self._keep("edges_by_type", self._make_edges_by_type)
        return grouped

    def transpose_order(self) -> Tensor:
        """Position here of each edge of the transpose, int64 [M]."""
        order: Tensor = self._keep("transpose_order", self._make_transpose_order)
        return order

    def transposed(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Offsets, columns and edge type of the transpose."""
        transposed: tuple[Tensor, Tensor, Tensor | None] = self._keep("transposed", self._make_transposed)
        return transposed

    def _keep(self, name: str, make: Callable[[], Any]) -> Any:
        if name in self.kept:
            return self.kept[name]
        with plain_mode(self.columns.device):
            made = make()
        # Code compiled for inference would leave inference tensors here.
        if torch.is_grad_enabled() or not torch.compiler.is_compiling():
            self.kept[name] = made
        return made

    def _make_rows(self) -> Tensor:
        degree = self.offsets.diff()
        ids = torch.arange(degree.shape[0], dtype=self.columns.dtype, device=self.columns.device)
        return torch.repeat_interleave(ids, degree, output_size=self.columns.shape[0])

    def _make_edges_by_type(self) -> tuple[Tensor, Tensor]:
        assert self.edge_type is not None
        kinds, order = torch.sort(self.edge_type, stable=True)
        return row_offsets(kinds, self.num_edge_types), order

    def _make_transpose_order(self) -> Tensor:
        if "transposed_by" not in self.kept:
            return torch.sort(self.columns, stable=True).indices
        edges = torch.arange(self.columns.shape[0], device=self.columns.device)
        return torch.empty_like(edges).scatter_(0, self.kept["transposed_by"], edges)

    def _make_transposed(self) -> tuple[Tensor, Tensor, Tensor | None]:
        order, num_nodes = self.transpose_order(), self.offsets.shape[0] - 1
        columns = self.columns.index_select(0, order)
        # The trusted constructor of Graph did not check the columns.
        check_ascending("Graph.transpose", "columns", self.columns, columns, num_nodes)
        edge_type = None if self.edge_type is None else self.edge_type.index_select(0, order)
        return row_offsets(columns, num_nodes), self.rows().index_select(0, order), edge_type
