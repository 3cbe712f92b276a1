"""Molecule networks without the operators: every published GMoE expert on every atom, and OGB's GCN in plain PyG style.

N atoms, M bonds in both directions or two-hop paths, B molecules, E experts, K chosen, D in, F out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmoe_ext.data import MoleculeBatch
from gmoe_ext.models import MoleculeGNN
from gmoe_ext.nn import GMoEConv
from gmoe_ext.nn.gmoe.experts import BondConvs


def bond_features(types_M: Tensor) -> Tensor:
    """[M, 3] features of bond types a * 12 + b * 2 + c."""
    return torch.stack([types_M // 12, types_M // 2 % 6, types_M % 2], dim=1)


class DenseMixture(nn.Module):
    """The evaluation of a GCN mixture on one batch, with the parameters of ``conv``.

    Each expert looks up and adds up the embeddings of every bond, computes degrees and norms by itself, passes
    messages to all atoms by index_add, and is normalised; results are stacked, multiplied by dense gates and summed.

    Args:
        conv: base "gcn" with bonds.
        batch: gives the edges.
    """

    def __init__(self, conv: GMoEConv, batch: MoleculeBatch) -> None:
        super().__init__()
        assert conv.config.base == "gcn" and isinstance(conv.experts, BondConvs) and conv.norm is not None
        assert batch.two_hop is not None and batch.pair_types is not None and batch.graph.edge_type is not None
        self.conv, self.linear, self.messages = conv, conv.experts.linear, conv.experts.messages
        self.one_edges, self.one_features = batch.graph.edge_index(), bond_features(batch.graph.edge_type.long())
        assert batch.two_hop.edge_type is not None
        pairs = batch.pair_types[batch.two_hop.edge_type.long()]
        self.two_edges = batch.two_hop.edge_index()
        self.two_features = torch.cat([bond_features(pairs[:, 0]), bond_features(pairs[:, 1])], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, D] -> y [N, F]."""
        conv, norm = self.conv, self.conv.norm
        outputs = []
        for e in range(conv.num_experts):
            y_NF = self._expert(e, F.linear(x, self.linear.weight[e], self.linear.bias[e]))
            y_NF = F.batch_norm(
                y_NF, norm.running_mean[e], norm.running_var[e], norm.weight[e], norm.bias[e], eps=norm.eps
            )
            outputs.append(y_NF)
        top_NK, index_NK = torch.topk(F.linear(x, conv.gate.weight_gate), conv.k, dim=1)
        gates_NE = x.new_zeros(len(x), conv.num_experts).scatter(1, index_NK, torch.softmax(top_NK, dim=1))
        y_NF = (torch.stack(outputs, dim=1) * gates_NE.unsqueeze(2)).sum(1)
        return y_NF / conv.num_experts if conv.config.combine == "mean" else y_NF

    def _expert(self, e: int, h_NF: Tensor) -> Tensor:
        near = e < self.conv.num_hop1
        encoder = self.messages.bonds if near else self.messages.pairs
        (source, target), features = (
            (self.one_edges, self.one_features) if near else (self.two_edges, self.two_features)
        )
        place = e if near else e - self.conv.num_hop1
        bond_MF = sum(table[place][features[:, column]] for column, table in enumerate(encoder.tables))
        degree_N = torch.ones(len(h_NF)).index_add_(0, target, torch.ones(len(target)))
        scale_N = degree_N.rsqrt()
        message_MF = (scale_N[source] * scale_N[target]).unsqueeze(1) * F.relu(h_NF[source] + bond_MF)
        own_NF = F.relu(h_NF + self.messages.root[e]) / degree_N.unsqueeze(1)
        return torch.zeros_like(h_NF).index_add_(0, target, message_MF) + own_NF


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
