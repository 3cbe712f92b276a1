"""Serve single nodes with a GNN."""

from __future__ import annotations

import torch
from torch import Tensor

from ..graph import Graph
from ..indices import gather_ranges
from ..models.gnn import ExpertGNN
from ..models.registry import Model


class NodeServer:
    """Answer nodes with a GNN, as a service that holds graph and features in memory would.

    A request fetches the nodes its answer depends on, hop by hop, cuts out their graph and runs the layers on it. If
    these are more than half of all nodes, the layers run on the whole graph, which is cheaper then. Answers equal those
    of a forward over the whole graph.

    Args:
        model: forward(x, graph) -> Output.
        x: features of all nodes, [N, F].
        graph: the graph of all nodes.
    """

    def __init__(self, model: Model, x: Tensor, graph: Graph) -> None:
        self.model, self.x, self.graph = model.eval(), x, graph
        self._gcn_norm = graph.gcn_norm()
        layers = list(model.convs()) if isinstance(model, ExpertGNN) else []
        self.hops = sum(2 if layer.needs_two_hop else 1 for layer in layers)

    @torch.inference_mode()
    def answer(self, nodes: Tensor) -> Tensor:
        """Return logits [B, C] of nodes [B]."""
        needed = self.reach(nodes)
        if needed is None:
            whole: Tensor = self.model(self.x, self.graph).logits
            return whole[nodes]
        # Degrees of the outermost nodes are those of the whole graph, not of the piece.
        piece = self.graph.subgraph(needed).prefill(gcn_norm=self._gcn_norm.subgraph(needed))
        logits: Tensor = self.model(self.x[needed], piece).logits
        return logits[torch.searchsorted(needed, nodes)]

    def reach(self, nodes: Tensor) -> Tensor | None:
        """Return the ids of all nodes an answer depends on, ascending; None if they are more than half of the graph."""
        offsets, columns = self.graph.offsets, self.graph.columns
        reached: Tensor = torch.unique(nodes)
        for _ in range(self.hops):
            starts = offsets[reached]
            edges = gather_ranges(starts, offsets[reached + 1] - starts)
            reached = torch.unique(torch.cat([reached, columns[edges].long()]))
            if 2 * len(reached) > self.graph.num_nodes:
                return None
        return reached
