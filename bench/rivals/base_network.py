"""OGB's GCN on molecules as users of PyG write it: an embedding per bond and layer, degrees per layer, index_add.

N atoms, M bonds in both directions, B molecules, D features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmoe_ext.data import MoleculeBatch
from gmoe_ext.models import MoleculeGNN
from gmoe_ext.nn.gmoe.experts import BondConvs

from .molecule_layer import bond_features


class PlainNetwork(nn.Module):
    """The evaluation of a base network on the bonds of one batch, with the parameters of ``net``."""

    def __init__(self, net: MoleculeGNN, batch: MoleculeBatch) -> None:
        super().__init__()
        assert batch.graph.edge_type is not None
        self.net = net
        self.source, self.target = batch.graph.edge_index()
        self.features = bond_features(batch.graph.edge_type.long())
        molecules = torch.arange(batch.num_graphs, device=batch.sizes.device)
        self.molecule = molecules.repeat_interleave(batch.sizes)
        self.num_graphs = batch.num_graphs

    def forward(self, node_feat: Tensor) -> Tensor:
        """Atom categories [N, 9] -> logits [B, tasks]."""
        tables = torch.split(self.net.atoms.weight, self.net.atoms.feature_dims)
        h = sum(F.embedding(node_feat[:, column], table) for column, table in enumerate(tables))
        assert isinstance(h, Tensor)
        convs = list(self.net.convs())
        for depth, conv in enumerate(convs, start=1):
            assert conv.norm is not None and isinstance(conv.experts, BondConvs)
            h = self._convolve(conv.experts, h)
            norm = conv.norm
            h = F.batch_norm(h, norm.running_mean[0], norm.running_var[0], norm.weight[0], norm.bias[0], eps=norm.eps)
            h = F.relu(h) if depth < len(convs) else h
        total = h.new_zeros(self.num_graphs, h.shape[1]).index_add_(0, self.molecule, h)
        atoms = h.new_zeros(self.num_graphs).index_add_(0, self.molecule, h.new_ones(len(h)))
        logits: Tensor = self.net.head(total / atoms.unsqueeze(1))
        return logits

    def _convolve(self, conv: BondConvs, h: Tensor) -> Tensor:
        bonds, root = conv.messages.bonds, conv.messages.root
        assert bonds is not None and root is not None
        h = F.linear(h, conv.linear.weight[0], conv.linear.bias[0])
        embedded = sum(F.embedding(self.features[:, c], table[0]) for c, table in enumerate(bonds.tables))
        degree = h.new_ones(len(h)).index_add_(0, self.target, h.new_ones(len(self.target)))
        scale = degree.rsqrt()
        weight = (scale[self.source] * scale[self.target]).unsqueeze(1)
        message = weight * F.relu(h[self.source] + embedded)
        return torch.zeros_like(h).index_add_(0, self.target, message) + F.relu(h + root[0]) / degree.unsqueeze(1)
