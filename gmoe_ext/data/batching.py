"""Batches cut from a union of graphs: a few gathers from tables built once, on the device where the union is.

All nodes of a molecule are consecutive in the union, so its edges are one range too, in the graph, in its transpose and
in every normalisation of it. The host knows where the ranges begin and how long they are; it sends that to the device
in one copy and waits for nothing.

Shapes: B molecules in a batch, N atoms, M edges of a graph, M' edges with its self loops.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..graph import Graph
from ..indices import gather_ranges
from .arrays import Array


def without_waiting(values: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device; to a GPU through page-locked memory, so that the host does not wait.

    If the device is the CPU nothing is copied, so the caller must not write to ``values`` afterwards.
    """
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


class EdgeRanges(NamedTuple):
    """Where the edges of a batch are in a table: one range per molecule, of the plain graph, then of the looped one.

    Attributes:
        begin, counts: first edge and number of edges of each range, int64 [2 B].
        starts: first edge of each range in its graph of the batch, int64 [2 B].
        plain, total: edges of the plain graph of the batch, and of both graphs.
    """

    begin: Tensor
    counts: Tensor
    starts: Tensor
    plain: int
    total: int


class Cut(NamedTuple):
    """Where the molecules of a batch are in the union, on the union's device.

    Attributes:
        ids: molecules, int64 [B].
        nodes: their atoms in the union, int64 [N].
        sizes: atoms of each molecule, int64 [B].
        starts: first atom of each molecule in the batch, int64 [B].
        edges: one entry per table.
    """

    ids: Tensor
    nodes: Tensor
    sizes: Tensor
    starts: Tensor
    edges: list[EdgeRanges]

    @classmethod
    def of(cls, node_offsets: Tensor, ids: Tensor, tables: Sequence[Table], device: torch.device) -> Cut:
        """Find the molecules ``ids`` in the union; all that the device needs is sent in one copy."""
        chosen, offsets = ids.numpy(), node_offsets.numpy()
        begin = offsets[chosen]
        sizes = offsets[chosen + 1] - begin
        known = [chosen, begin, sizes, sizes.cumsum() - sizes]
        totals = []
        for table in tables:
            first = table.edge_offsets[:, chosen]
            counts = table.edge_offsets[:, chosen + 1] - first
            known += [first, counts, counts.cumsum(1) - counts]
            totals.append((int(counts[0].sum()), int(counts.sum())))
        flat = torch.from_numpy(np.concatenate([part.reshape(-1) for part in known]))
        moved = iter(torch.split(without_waiting(flat, device), [part.size for part in known]))
        placed, first_node, sizes_B, starts = (next(moved) for _ in range(4))
        edges = [EdgeRanges(next(moved), next(moved), next(moved), *total) for total in totals]
        return cls(placed, gather_ranges(first_node, sizes_B, int(sizes.sum())), sizes_B, starts, edges)


class Table:
    """The edges of a union, without and with self loops, ready to be gathered.

    Both graphs stand side by side, so that one gather serves both. Atom and edge ids are local to their molecule.

    Attributes:
        edges: int32 [5, M + M']: columns of the graph and of its transpose, the transpose's order, edge types of both.
        weights: float32 [2, M + M']: of the mean, and of the symmetric normalisation (for the looped graph only).
    """

    def __init__(self, graph: Graph, node_offsets: Tensor) -> None:
        # A copy of the graph, so that the graphs derived here do not stay in its cache.
        plain = Graph(graph.num_nodes, graph.offsets, graph.columns, None, graph.edge_type, graph.num_edge_types)
        looped = plain.gcn_norm()
        self.num_edge_types = (plain.num_edge_types, looped.num_edge_types)
        mean, looped_mean = _weight(plain.mean_norm()), _weight(plain.mean_norm(add_self_loops=True))
        self.weights = torch.stack([torch.cat([mean, looped_mean]), torch.cat([mean, _weight(looped)])])
        self.edges = torch.cat([_local_edges(plain, node_offsets), _local_edges(looped, node_offsets)], 1)
        degrees = [part.degree() for one in (plain, looped) for part in (one, one.transpose())]
        self.degrees = torch.stack(degrees)
        begins = [one.offsets.cpu()[node_offsets] for one in (plain, looped)]
        self.edge_offsets: Array = torch.stack([begins[0], begins[1] + plain.num_edges]).numpy()

    def cut(self, cut: Cut, ranges: EdgeRanges) -> Graph:
        """Cut out a batch's graph; its transpose, gcn_norm() and mean_norm(), with and without loops, are prefilled."""
        edges, values = self._gather(ranges, cut.starts.int())
        offsets = torch.zeros(4, len(cut.nodes) + 1, dtype=torch.int64, device=edges.device)
        torch.cumsum(self.degrees.gather(1, cut.nodes.expand(4, -1)), 1, out=offsets[:, 1:])
        of_mean, of_gcn = self.weights.index_select(1, edges).unbind()

        def part(which: int, span: slice) -> Graph:
            columns, reverse_columns, order, kinds, reverse_kinds = values[:, span].unbind()
            graph = Graph(len(cut.nodes), offsets[2 * which], columns, None, kinds, self.num_edge_types[which])
            transposed = (offsets[2 * which + 1], reverse_columns, reverse_kinds)
            return graph.prefill(transpose_order=order.long(), transposed=transposed).with_weight(of_mean[span])

        own, with_loops = slice(0, ranges.plain), slice(ranges.plain, None)
        mean, looped = part(0, own), part(1, with_loops)
        return mean.with_weight(None).prefill(
            mean_norm=mean, looped_mean_norm=looped, gcn_norm=looped.with_weight(of_gcn[with_loops])
        )

    def _gather(self, ranges: EdgeRanges, node_starts: Tensor) -> tuple[Tensor, Tensor]:
        counts, device = ranges.counts, self.edges.device
        molecules = torch.arange(len(counts), device=device).repeat_interleave(counts, output_size=ranges.total)
        moved = ranges.begin - counts.cumsum(0) + counts
        edges = torch.arange(ranges.total, device=device) + moved.index_select(0, molecules)
        values = self.edges.gather(1, edges.expand(5, -1))
        values[:2] += node_starts.repeat(2).index_select(0, molecules)
        values[2] += ranges.starts.int().index_select(0, molecules)
        return edges, values


def _weight(graph: Graph) -> Tensor:
    assert graph.weight is not None
    return graph.weight


def _local_edges(graph: Graph, node_offsets: Tensor) -> Tensor:
    reverse = graph.transpose()
    assert graph.edge_type is not None and reverse.edge_type is not None
    edge_offsets = graph.offsets.cpu()[node_offsets]
    counts = edge_offsets.diff().to(graph.device)
    first_node, first_edge = (
        begin[:-1].to(graph.device).repeat_interleave(counts, output_size=graph.num_edges)
        for begin in (node_offsets, edge_offsets)
    )
    local = (graph.columns - first_node, reverse.columns - first_node, graph.transpose_order - first_edge)
    return torch.stack([values.int() for values in (*local, graph.edge_type, reverse.edge_type)])
