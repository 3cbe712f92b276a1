"""Molecule networks: atoms and bonds in, one prediction per molecule and task out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.dropout import dropout
from ..nn.encoders import BOND_DIMS, AtomEncoder
from ..nn.gmoe_conv import Base
from .gnn import Mixture, MixtureModel, Norm, expert_norm
from .output import Output

if TYPE_CHECKING:
    from ..data import MoleculeBatch


def mean_pool(h_NF: Tensor, sizes_B: Tensor) -> Tensor:
    """Mean over the nodes of each graph, [B, F]; the nodes of a graph lie together. A graph without nodes gives 0."""
    return torch.segment_reduce(h_NF, "mean", lengths=sizes_B, axis=0, initial=0.0, unsafe=True)


class MoleculeGNN(MixtureModel):
    """OGB's molecule network with a mixture of experts in every layer.

    AtomEncoder, then L layers of GMoEConv with dropout after each and ReLU after all but the last, the mean over the
    atoms of a molecule, and a linear head. Options: see :func:`gmoe_ext.models.gmoe.gmoe`.

    Returns:
        forward(batch) gives Output(logits [G, out_dim], aux).
    """

    def __init__(
        self,
        base: Base,
        hidden_dim: int,
        out_dim: int,
        num_layers: int,
        dropout: float,
        norm: Norm,
        mixture: Mixture,
    ) -> None:
        super().__init__(num_layers, dropout, mixture)
        self.atoms = AtomEncoder(hidden_dim)
        self.layers = nn.ModuleList(
            mixture.conv(base, hidden_dim, hidden_dim, expert_norm(norm), bond_dims=BOND_DIMS)
            for _ in range(num_layers)
        )
        self.head = nn.Linear(hidden_dim, out_dim)

    def forward(self, batch: MoleculeBatch) -> Output:
        """Predict the tasks of each molecule of ``batch``."""
        h, losses = self.atoms(batch.node_feat), []
        for depth, conv in enumerate(self.convs(), start=1):
            h, loss = conv(h, batch.graph, batch.two_hop, batch.pair_types)
            losses.append(loss)
            h = dropout(F.relu(h) if depth < len(self.layers) else h, self.dropout, self.training)
        return Output(self.head(mean_pool(h, batch.sizes)), self.balance(losses))
