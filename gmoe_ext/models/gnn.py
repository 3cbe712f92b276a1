"""Node networks: graph convolutions with norm, ReLU and dropout between them; one expert a layer or many.

The base networks and their mixtures are one class: a base network is a mixture of one expert.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..graph import Graph
from ..nn.dropout import dropout
from ..nn.gmoe_conv import Base, Combine, ExpertNorm, GMoEConv
from .output import Output
from .registry import Model

Norm = Literal["none", "batch", "routed", "all_nodes"]
Input = Literal["node", "molecule"]
AuxOver = Literal["mean", "sum"]

# What a model calls "batch" is the layer's BatchNorm per expert over its routed rows; one expert routes every row.
_EXPERT_NORM: dict[str, ExpertNorm] = {
    "none": "none",
    "batch": "routed",
    "routed": "routed",
    "all_nodes": "all_nodes",
}


def expert_norm(norm: str) -> ExpertNorm:
    """The layer's norm for a model's option ``norm``."""
    if norm not in _EXPERT_NORM:
        raise ValueError(f"expected 'norm' to be one of {', '.join(_EXPERT_NORM)}, got {norm!r}")
    return _EXPERT_NORM[norm]


@dataclass(frozen=True)
class Mixture:
    """The experts of every layer, and the loss that balances them; see :func:`gmoe_ext.models.gmoe.gmoe`."""

    num_experts: int = 1
    num_hop1: int | None = None
    k: int = 1
    combine: Combine = "sum"
    aux_weight: float = 0.0
    aux_over: AuxOver = "mean"

    def __post_init__(self) -> None:
        if self.aux_over not in ("mean", "sum"):
            raise ValueError(f"expected 'aux_over' to be 'mean' or 'sum', got {self.aux_over!r}")

    def conv(self, base: Base, in_dim: int, out_dim: int, norm: ExpertNorm, **options: Any) -> GMoEConv:
        """A layer of these experts; ``options`` are its bond_dims or mlp_dim."""
        experts = self.num_experts, self.num_hop1, self.k
        return GMoEConv(in_dim, out_dim, *experts, base, norm=norm, combine=self.combine, **options)


class MixtureModel(Model):
    """What node and molecule networks share: layers of experts and the balance loss over them.

    Attributes:
        layers: the GMoEConv layers, from the input up.
        needs_two_hop: whether a layer has hop-2 experts.
    """

    layers: nn.ModuleList

    def __init__(self, num_layers: int, dropout: float, mixture: Mixture) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"expected 'num_layers' of at least 1, got {num_layers}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"expected 'dropout' in [0, 1), got {dropout}")
        self.dropout, self.mixture = dropout, mixture

    def convs(self) -> Iterator[GMoEConv]:
        """The layers, typed."""
        for layer in self.layers:
            assert isinstance(layer, GMoEConv)
            yield layer

    @property
    def needs_two_hop(self) -> bool:
        return any(conv.needs_two_hop for conv in self.convs())

    def balance(self, losses: Sequence[Tensor]) -> Tensor:
        """lambda * (importance + load), averaged or summed over the layers (GMoE, eq. 9)."""
        total = losses[0] if len(losses) == 1 else torch.stack(list(losses)).sum()
        weight = self.mixture.aux_weight
        return total * (weight / len(losses) if self.mixture.aux_over == "mean" else weight)

    def expert_load(self) -> Tensor:
        """Share of the last forward's slots that each expert served, [E], averaged over layers; sums to 1."""
        return torch.stack([conv.expert_load() for conv in self.convs()]).mean(0)


class NodeGNN(MixtureModel):
    """A stack of GMoEConv layers for node classification; the last layer gives the logits.

    Between layers: norm of the experts' results, ReLU, dropout. Options: see :func:`gmoe_ext.models.gmoe.gmoe`.

    Returns:
        forward(x [N, in_dim], graph) gives Output(logits [N, out_dim], aux).
    """

    def __init__(
        self,
        base: Base,
        in_dim: int,
        hidden_dim: int,
        out_dim: int,
        num_layers: int,
        dropout: float,
        norm: Norm,
        mixture: Mixture,
    ) -> None:
        super().__init__(num_layers, dropout, mixture)
        dims = [in_dim] + [hidden_dim] * (num_layers - 1) + [out_dim]
        inner = expert_norm(norm)
        self.layers = nn.ModuleList(
            mixture.conv(base, wide_in, wide_out, inner if depth < num_layers else "none", mlp_dim=hidden_dim)
            for depth, (wide_in, wide_out) in enumerate(itertools.pairwise(dims), start=1)
        )

    def forward(self, x: Tensor, graph: Graph, two_hop: Graph | None = None) -> Output:
        """Classify the nodes of ``graph``; hop-2 experts use ``two_hop`` if given, else A(Ax)."""
        h, losses = x, []
        for depth, conv in enumerate(self.convs(), start=1):
            h, loss = conv(h, graph, two_hop)
            losses.append(loss)
            if depth < len(self.layers):
                h = dropout(F.relu(h), self.dropout, self.training)
        return Output(h, self.balance(losses))


def scaled_dim(hidden_dim: int, k: int, scale_hidden: bool) -> int:
    """hidden_dim / sqrt(k), the width at which k experts cost what one did (GMoE, section 3.2)."""
    if hidden_dim < 1:
        raise ValueError(f"expected 'hidden_dim' of at least 1, got {hidden_dim}")
    return max(round(hidden_dim / math.sqrt(k)), 1) if scale_hidden else hidden_dim
