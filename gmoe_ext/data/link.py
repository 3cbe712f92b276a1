"""LinkData: a graph whose missing edges are predicted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..graph import Graph


@dataclass(frozen=True, eq=False, repr=False)
class LinkData:
    """A training graph and the pairs to score.

    Attributes:
        name: of the data set.
        graph: the training edges, both directions, no self loops.
        x: node features float32 [N, F], or None.
        train_edge, val_edge, test_edge: positive pairs, int64 [2, E].
        val_edge_neg, test_edge_neg: negative pairs, int64 [2, E].
        metric: such as 'hits@20'.
        sha256: digest of each file read, by file name.
    """

    name: str
    graph: Graph
    x: Tensor | None
    train_edge: Tensor
    val_edge: Tensor
    test_edge: Tensor
    val_edge_neg: Tensor
    test_edge_neg: Tensor
    metric: str = "hits@20"
    sha256: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.graph.num_nodes

    def to(self, device: torch.device | str) -> LinkData:
        """This data on another device."""
        names = ("graph", "train_edge", "val_edge", "test_edge", "val_edge_neg", "test_edge_neg")
        moved = {name: getattr(self, name).to(device) for name in names}
        return replace(self, x=None if self.x is None else self.x.to(device), **moved)

    def summary(self) -> str:
        """One line: nodes, edges to train, validate and test on."""
        parts = "/".join(f"{edges.shape[1]:,}" for edges in (self.train_edge, self.val_edge, self.test_edge))
        return f"{self.num_nodes:,} nodes, {parts} edges to train/validate/test, {self.metric}"

    def __repr__(self) -> str:
        return f"LinkData({self.name}: {self.summary()})"
