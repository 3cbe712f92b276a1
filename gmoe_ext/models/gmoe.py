"""The graph networks in the registry: gcn, gin, sage and their mixtures gmoe-gcn, gmoe-gin, gmoe-sage."""

from __future__ import annotations

from typing import cast

from ..nn.gmoe_conv import Base, Combine
from .gnn import AuxOver, Input, Mixture, MixtureModel, NodeGNN, Norm, scaled_dim
from .molecule import MoleculeGNN
from .registry import register


@register("gcn")
@register("gin")
@register("sage")
def gnn(
    name: str,
    out_dim: int,
    hidden_dim: int,
    num_layers: int,
    in_dim: int | None = None,
    dropout: float = 0.5,
    norm: Norm | None = None,
    input: Input = "node",
) -> MixtureModel:
    """A base network, which is a mixture of one expert.

    Args:
        name: "gcn", "gin" or "sage" (the mean over a node and its neighbours, as RbM's teacher).
        out_dim: classes, or tasks of a molecule.
        hidden_dim: width between the layers.
        num_layers: graph convolutions, >= 1.
        in_dim: features of a node; unused with ``input="molecule"``.
        dropout: drop probability between the layers.
        norm: "none" or "batch"; None means "none" for nodes and "batch" for molecules.
        input: "node" for forward(x, graph), "molecule" for forward(batch).

    Raises:
        ValueError: an option is out of its range.

    Example:
        >>> teacher = build("sage", in_dim=16, hidden_dim=32, out_dim=4, num_layers=2)
    """
    return _network(cast(Base, name), out_dim, hidden_dim, num_layers, in_dim, dropout, norm, input, Mixture())


@register("gmoe-gcn")
@register("gmoe-gin")
@register("gmoe-sage")
def gmoe(
    name: str,
    out_dim: int,
    hidden_dim: int,
    num_layers: int,
    in_dim: int | None = None,
    dropout: float = 0.5,
    norm: Norm | None = None,
    input: Input = "node",
    num_experts: int = 8,
    num_hop1: int | None = None,
    k: int = 4,
    aux_weight: float = 0.1,
    scale_hidden: bool = False,
    combine: Combine = "sum",
    aux_over: AuxOver = "mean",
) -> MixtureModel:
    """A GMoE network: every layer of the base network becomes a mixture (GMoE, section 3.1).

    Args:
        name: "gmoe-gcn", "gmoe-gin" or "gmoe-sage".
        out_dim: classes, or tasks of a molecule.
        hidden_dim: width between the layers.
        num_layers: graph convolutions, >= 1.
        in_dim: features of a node; unused with ``input="molecule"``.
        dropout: drop probability between the layers.
        norm: BatchNorm of each expert's result: "none", "routed" (same as "batch") over the nodes routed to it,
            "all_nodes" over all nodes. None means "none" for nodes and "routed" for molecules.
        input: "node" for forward(x, graph), "molecule" for forward(batch).
        num_experts: n.
        num_hop1: m, experts that see neighbours; the other n - m see two hops. None means all.
        k: experts per node.
        aux_weight: lambda of eq. 9.
        scale_hidden: make the width hidden_dim / sqrt(k), which costs no more than the base network (section 3.2).
        combine: "sum" of gate times expert (eq. 2), or "mean", that sum divided by n (the released code).
        aux_over: balance losses as their "mean" or "sum" over the layers.

    Raises:
        ValueError: an option is out of its range.

    Example:
        >>> net = build("gmoe-gcn", input="molecule", hidden_dim=300, out_dim=1, num_layers=5, scale_hidden=True)
    """
    base = cast(Base, name.removeprefix("gmoe-"))
    mixture = Mixture(num_experts, num_hop1, k, combine, aux_weight, aux_over)
    width = scaled_dim(hidden_dim, k, scale_hidden)
    return _network(base, out_dim, width, num_layers, in_dim, dropout, norm, input, mixture)


def _network(
    base: Base,
    out_dim: int,
    hidden_dim: int,
    num_layers: int,
    in_dim: int | None,
    dropout: float,
    norm: Norm | None,
    input: str,
    mixture: Mixture,
) -> MixtureModel:
    if input == "molecule":
        return MoleculeGNN(base, hidden_dim, out_dim, num_layers, dropout, norm or "routed", mixture)
    if input != "node":
        raise ValueError(f"expected 'input' to be 'node' or 'molecule', got {input!r}")
    if in_dim is None:
        raise ValueError("expected 'in_dim', the features of a node, got None")
    return NodeGNN(base, in_dim, hidden_dim, out_dim, num_layers, dropout, norm or "none", mixture)
