"""A soft-voting ensemble of MLP students, RbM's rival in its section 5.3."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .mlp import MLP
from .output import Output
from .registry import Model, register


@register("ensemble", passes_to=MLP, graph_free=True)
class Ensemble(Model):
    """MLPs of one shape and different initial weights, whose probabilities are averaged.

    logits = log(1/n sum_m softmax(z_m)), so that softmax(logits) is the mean of the members' probabilities.

    Each member learns by itself, from the whole loss (:meth:`learners`); a loss of the ensemble's own answer would let
    the members lean on each other.

    Args:
        in_dim: features (and positions) of a node.
        hidden_dim: width of the hidden layers.
        out_dim: classes.
        num_members: n.
        member: the other options of :class:`MLP`: num_layers, dropout, norm.

    Returns:
        forward(x [N, in_dim]) gives Output(logits [N, out_dim], aux = 0).

    Raises:
        ValueError: an option is out of its range.

    Example:
        >>> student = build("ensemble", in_dim=16, hidden_dim=32, out_dim=4, num_members=3)
        >>> student(torch.randn(5, 16)).logits.shape
        torch.Size([5, 4])
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_members: int = 3, **member: Any) -> None:
        super().__init__()
        if num_members < 1:
            raise ValueError(f"expected 'num_members' of at least 1, got {num_members}")
        self.members = nn.ModuleList(MLP(in_dim, hidden_dim, out_dim, **member) for _ in range(num_members))

    def mlps(self) -> Iterator[MLP]:
        """The members, typed."""
        for member in self.members:
            assert isinstance(member, MLP)
            yield member

    def learners(self) -> list[Model]:
        """The members."""
        return list(self.mlps())

    def forward(self, x_ND: Tensor) -> Output:
        votes = torch.stack([member(x_ND).logits.log_softmax(dim=1) for member in self.members])
        return Output(votes.logsumexp(dim=0) - math.log(len(self.members)), x_ND.new_zeros(()))
