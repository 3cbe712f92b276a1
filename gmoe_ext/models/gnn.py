"""The graph networks in the registry: gcn, gin, sage, and gmoe-gcn, gmoe-gin, gmoe-sage with experts in every layer.

Both kinds are the same classes: a base network has one expert per layer. `NodeGNN` classifies nodes, `MoleculeGNN`
predicts properties of molecules. `NodeServer` answers single nodes with any of them that reads nodes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import expect, expect_choice
from ..feature_rows import Features
from ..graph import Graph, expect_graph
from ..indices import gather_ranges
from ..nn.dropout import dropout
from ..nn.gmoe.encoders import BOND_DIMS, AtomEncoder
from ..nn.gmoe.experts import Base, Combine, ExpertNorm, GMoEConfig
from ..nn.gmoe.gmoe_conv import GMoEConv
from .registry import Model, Output, register

if TYPE_CHECKING:
    from ..data import MoleculeBatch

Norm = Literal["none", "batch", "routed", "all_nodes"]
AuxOver = Literal["mean", "sum"]


@dataclass(frozen=True, kw_only=True)
class GNNConfig:
    """Shape of a graph network.

    Attributes:
        out_dim: classes, or tasks of a molecule.
        hidden_dim: width between the layers.
        num_layers: graph convolutions, >= 1.
        in_dim: features of a node; unused with ``input="molecule"``.
        dropout: drop probability between the layers.
        norm: BatchNorm of each expert's result: "none", "routed" (also called "batch") over the nodes routed to it,
            "all_nodes" over all nodes. None means "none" for nodes and "routed" for molecules.
        input: "node" for forward(x, graph), "molecule" for forward(batch).

    Raises:
        ValueError: an option is out of its range.
    """

    out_dim: int
    hidden_dim: int
    num_layers: int
    in_dim: int | None = None
    dropout: float = 0.5
    norm: Norm | None = None
    input: Literal["node", "molecule"] = "node"

    def __post_init__(self) -> None:
        where = "GNN"
        expect(self.hidden_dim >= 1, where, "hidden_dim", "of at least 1", self.hidden_dim)
        expect(self.num_layers >= 1, where, "num_layers", "of at least 1", self.num_layers)
        expect(0.0 <= self.dropout < 1.0, where, "dropout", "in [0, 1)", self.dropout)
        if self.norm is not None:
            expect_choice(self.norm, get_args(Norm), where, "norm")
        expect_choice(self.input, ("node", "molecule"), where, "input")
        expect(self.input != "node" or self.in_dim is not None, where, "in_dim", "to be the features of a node", None)

    def expert_norm(self, default: ExpertNorm) -> ExpertNorm:
        """Return the layers' norm: "batch" is "routed", because a single expert gets every row."""
        if self.norm is None:
            return default
        return "routed" if self.norm == "batch" else self.norm


class ExpertGNN(Model):
    """Layers of experts and the balance loss over them, shared by node and molecule networks.

    Args:
        network: shape of the network.
        experts: settings of the layers (of the subclasses); norm, bond_dims and mlp_dim follow from ``network``.
        aux_weight: lambda of eq. 9.
        aux_over: "mean" or "sum" of the layers' balance losses.

    Attributes:
        layers: the GMoEConv layers, from the input up.
    """

    layers: nn.ModuleList

    def __init__(self, network: GNNConfig, aux_weight: float, aux_over: AuxOver) -> None:
        super().__init__()
        expect_choice(aux_over, get_args(AuxOver), "GMoE", "aux_over")
        self.dropout, self.aux_weight, self.aux_over = network.dropout, aux_weight, aux_over

    def convs(self) -> list[GMoEConv]:
        """List the layers, typed, from the input up."""
        return [cast(GMoEConv, layer) for layer in self.layers]

    @property
    def needs_two_hop(self) -> bool:
        """Whether a layer has hop-2 experts."""
        return any(conv.needs_two_hop for conv in self.convs())

    def balance(self, losses: Sequence[Tensor]) -> Tensor:
        """Combine the layers' balance losses: lambda * (importance + load), averaged or summed (GMoE, eq. 9)."""
        total = losses[0] if len(losses) == 1 else torch.stack(list(losses)).sum()
        return total * (self.aux_weight / len(losses) if self.aux_over == "mean" else self.aux_weight)

    def expert_load(self) -> Tensor:
        """Return the share of the last forward's slots that each expert served, [E], averaged over layers."""
        return torch.stack([conv.expert_load() for conv in self.convs()]).mean(0)


class NodeGNN(ExpertGNN):
    """A stack of GMoEConv layers for node classification; the last layer gives the logits.

    Between layers: norm of the experts' results, ReLU, dropout.

    Returns:
        forward(x [N, in_dim], graph) gives Output(logits [N, out_dim], aux).
    """

    def __init__(
        self, network: GNNConfig, experts: GMoEConfig, aux_weight: float = 0.0, aux_over: AuxOver = "mean"
    ) -> None:
        super().__init__(network, aux_weight, aux_over)
        assert network.in_dim is not None
        dims = [network.in_dim] + [network.hidden_dim] * (network.num_layers - 1) + [network.out_dim]
        norms: list[ExpertNorm] = [network.expert_norm("none")] * (network.num_layers - 1) + ["none"]
        self.layers = nn.ModuleList(
            GMoEConv(d, f, experts, norm=norm, mlp_dim=network.hidden_dim)
            for (d, f), norm in zip(itertools.pairwise(dims), norms, strict=True)
        )

    def forward(self, x: Features, graph: Graph, two_hop: Graph | None = None) -> Output:
        """Classify the nodes of ``graph``; hop-2 experts use ``two_hop`` if given, else A(Ax)."""
        h: Any = x
        losses = []
        for depth, conv in enumerate(self.convs(), start=1):
            h, loss = conv(h, graph, two_hop)
            losses.append(loss)
            if depth < len(self.layers):
                h = dropout(F.relu(h), self.dropout, self.training)
        return Output(h, self.balance(losses))


class MoleculeGNN(ExpertGNN):
    """OGB's molecule network with experts in every layer.

    AtomEncoder, then L layers of GMoEConv with dropout after each and ReLU after all but the last, the mean over the
    atoms of a molecule, and a linear head.

    Returns:
        forward(batch) gives Output(logits [G, out_dim], aux).
    """

    def __init__(
        self, network: GNNConfig, experts: GMoEConfig, aux_weight: float = 0.0, aux_over: AuxOver = "mean"
    ) -> None:
        super().__init__(network, aux_weight, aux_over)
        width, norm = network.hidden_dim, network.expert_norm("routed")
        self.atoms = AtomEncoder(width)
        self.layers = nn.ModuleList(
            GMoEConv(width, width, experts, norm=norm, bond_dims=BOND_DIMS) for _ in range(network.num_layers)
        )
        self.head = nn.Linear(width, network.out_dim)

    def forward(self, batch: MoleculeBatch) -> Output:
        """Predict the tasks of each molecule of ``batch``."""
        h, losses = self.atoms(batch.node_feat), []
        for depth, conv in enumerate(self.convs(), start=1):
            h, loss = conv(h, batch.graph, batch.two_hop, batch.pair_types)
            losses.append(loss)
            h = dropout(F.relu(h) if depth < len(self.layers) else h, self.dropout, self.training)
        return Output(self.head(mean_pool(h, batch.sizes)), self.balance(losses))


def mean_pool(h_NF: Tensor, sizes_B: Tensor) -> Tensor:
    """Average the nodes of each graph, which lie together, to [B, F]; a graph without nodes gives 0."""
    return torch.segment_reduce(h_NF, "mean", lengths=sizes_B, axis=0, initial=0.0, unsafe=True)


@register("gcn", "gin", "sage")
def gnn(name: str, network: GNNConfig) -> ExpertGNN:
    """Build a base network: one expert per layer.

    Args:
        name: "gcn", "gin" or "sage" (the mean over a node and its neighbours, as in RbM's teacher).
        network: shape of the network.

    Examples:
        >>> teacher = build("sage", in_dim=16, hidden_dim=32, out_dim=4, num_layers=2)
    """
    network_type = MoleculeGNN if network.input == "molecule" else NodeGNN
    return network_type(network, GMoEConfig(base=cast(Base, name), num_experts=1))


@register("gmoe-gcn", "gmoe-gin", "gmoe-sage")
def gmoe(
    name: str,
    network: GNNConfig,
    num_experts: int = 8,
    num_hop1: int | None = None,
    k: int = 4,
    aux_weight: float = 0.1,
    scale_hidden: bool = False,
    combine: Combine = "sum",
    aux_over: AuxOver = "mean",
) -> ExpertGNN:
    """Build a GMoE network: the base network with a mixture of experts in every layer (GMoE, section 3.1).

    Args:
        name: "gmoe-gcn", "gmoe-gin" or "gmoe-sage".
        network: shape of the network.
        num_experts, num_hop1, k, combine: see ``gmoe_ext.nn.GMoEConfig``.
        aux_weight: lambda of eq. 9.
        scale_hidden: make the width hidden_dim / sqrt(k), so that the cost is about that of the base network (section
            3.2).
        aux_over: take the "mean" or the "sum" of the layers' balance losses.

    Raises:
        ValueError: an option is out of its range.

    Examples:
        >>> net = build("gmoe-gcn", input="molecule", hidden_dim=300, out_dim=1, num_layers=5, scale_hidden=True)
    """
    base = cast(Base, name.removeprefix("gmoe-"))
    experts = GMoEConfig(num_experts=num_experts, num_hop1=num_hop1, k=k, base=base, combine=combine)
    if scale_hidden:
        network = replace(network, hidden_dim=max(round(network.hidden_dim / math.sqrt(k)), 1))
    network_type = MoleculeGNN if network.input == "molecule" else NodeGNN
    return network_type(network, experts, aux_weight, aux_over)


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

    def __init__(self, model: Model, x: Features, graph: Graph) -> None:
        expect_graph("NodeServer", graph)
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
