"""A GMoE layer the slow way: modules per expert, loops over edges, every expert on every node, then masks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmoe_ext import Graph, ops
from gmoe_ext.nn import GMoEConv

BOND_DIMS = (5, 6, 2)


class Molecules:
    """A random undirected graph with bond features, as edge lists and as graphs; node 0 has no bond."""

    def __init__(self, num_nodes: int, num_bonds: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        pairs = {}
        while len(pairs) < num_bonds:
            i, j = torch.randint(1, num_nodes, (2,), generator=generator).tolist()
            if i != j and (i, j) not in pairs and (j, i) not in pairs:
                pairs[i, j] = [int(torch.randint(0, d, (1,), generator=generator)) for d in BOND_DIMS]
        self.num_nodes = num_nodes
        self.bonds = [(i, j, b) for (i, j), b in pairs.items()] + [(j, i, b) for (i, j), b in pairs.items()]
        self.edge_index = torch.tensor([[e[0] for e in self.bonds], [e[1] for e in self.bonds]])
        types = torch.tensor([bond_type(e[2]) for e in self.bonds])
        self.graph = Graph.from_edge_index(self.edge_index, num_nodes, edge_type=types, num_edge_types=60)
        wide = ops.two_hop_graph(self.graph)
        used, compact = torch.unique(wide.edge_type, return_inverse=True)
        self.pair_types = torch.stack([used // 60, used % 60], dim=1).long()
        self.two_hop = Graph(
            num_nodes, wide.offsets, wide.columns, None, compact.to(wide.columns.dtype), self.pair_types.shape[0]
        )

    def paths(self) -> list[tuple[int, int, list[int]]]:
        """(source, destination, six bond features) of the strict two-hop pairs, through the lowest node between."""
        bond = {(j, i): b for j, i, b in self.bonds}
        found: dict[tuple[int, int], list[int]] = {}
        for middle in range(self.num_nodes):
            for j, m in bond:
                for m2, i in bond:
                    new = (j, i) not in found and (j, i) not in bond
                    if m == m2 == middle and i != j and new:
                        found[j, i] = bond[j, m] + bond[m, i]
        return [(j, i, features) for (j, i), features in found.items()]


def bond_type(features: list[int]) -> int:
    return (features[0] * 6 + features[1]) * 2 + features[2]


class BondExpert(nn.Module):
    """OGB's GCNConv (base gcn), its mean analog (sage) or GINConv (gin) with a loop over the edges."""

    def __init__(self, base: str, in_dim: int, out_dim: int, hops: int) -> None:
        super().__init__()
        self.base = base
        width = in_dim if base == "gin" else out_dim
        self.bonds = nn.ModuleList(nn.Embedding(rows, width) for rows in BOND_DIMS * hops)
        if base == "gin":
            self.eps = nn.Parameter(torch.zeros(()))
            self.first, self.second = nn.Linear(in_dim, 2 * in_dim), nn.Linear(2 * in_dim, out_dim)
            self.inner = nn.BatchNorm1d(2 * in_dim)
        else:
            self.linear, self.root = nn.Linear(in_dim, out_dim), nn.Embedding(1, out_dim)

    def before_mlp(self, x: Tensor, edges: list[tuple[int, int, list[int]]]) -> Tensor:
        degree = torch.ones(x.shape[0], dtype=x.dtype)
        for _, i, _ in edges:
            degree[i] += 1
        h = x if self.base == "gin" else self.linear(x)
        rows = [torch.zeros_like(h[0]) for _ in range(x.shape[0])]
        for j, i, features in edges:
            bond = sum(table(torch.tensor(f)) for table, f in zip(self.bonds, features, strict=True))
            message = F.relu(h[j] + bond)
            if self.base == "gcn":
                message = message / (degree[i] * degree[j]).sqrt()
            rows[i] = rows[i] + message
        total = torch.stack(rows)
        if self.base == "gin":
            return (1 + self.eps) * x + total
        root = F.relu(h + self.root.weight)
        return total + root / degree[:, None] if self.base == "gcn" else (total + root) / degree[:, None]


class PlainExpert(nn.Module):
    """GCN, SAGE or GIN on a plain graph by dense matrices."""

    def __init__(self, base: str, in_dim: int, out_dim: int, mlp_dim: int, hops: int) -> None:
        super().__init__()
        self.base, self.hops = base, hops
        if base == "gin":
            self.eps = nn.Parameter(torch.zeros(()))
            self.first, self.second = nn.Linear(in_dim, mlp_dim), nn.Linear(mlp_dim, out_dim)
            self.inner = nn.BatchNorm1d(mlp_dim)
        else:
            self.linear = nn.Linear(in_dim, out_dim)

    def before_mlp(self, x: Tensor, edge_index: Tensor) -> Tensor:
        adjacency = torch.zeros(x.shape[0], x.shape[0], dtype=x.dtype)
        adjacency[edge_index[1], edge_index[0]] = 1.0
        if self.base != "gin":
            adjacency.fill_diagonal_(1.0)
            degree = adjacency.sum(1)
            adjacency = adjacency / degree[:, None] if self.base == "sage" else adjacency / degree.outer(degree).sqrt()
        total = x
        for _ in range(self.hops):
            total = adjacency @ total
        return (1 + self.eps) * x + total if self.base == "gin" else self.linear(total)


class NaiveGMoE(nn.Module):
    """The mixture with the parameters of ``conv``, expert by expert."""

    def __init__(self, conv: GMoEConv, bonds: bool) -> None:
        super().__init__()
        self.conv = [conv]  # in a list: not a submodule
        self.bonds = bonds
        experts = []
        for e in range(conv.num_experts):
            hops = 1 if e < conv.num_hop1 else 2
            if bonds:
                experts.append(BondExpert(conv.config.base, conv.in_dim, conv.out_dim, hops))
            else:
                mlp_dim = conv.experts.first.out_dim if conv.config.base == "gin" else 0
                experts.append(PlainExpert(conv.config.base, conv.in_dim, conv.out_dim, mlp_dim, hops))
        self.experts = nn.ModuleList(experts)
        self.norms = nn.ModuleList(nn.BatchNorm1d(conv.out_dim) for _ in experts)
        self.double()
        with torch.no_grad():
            for mine, theirs in self.pairs():
                mine.copy_(theirs)
            for mine, theirs in self.statistics():
                mine.copy_(theirs)

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """(parameter here, the same slice of the layer's parameter)."""
        return [(mine, theirs.view(mine.shape)) for mine, theirs in self._slices(lambda p: p)]

    def gradients(self) -> list[tuple[Tensor, Tensor]]:
        """(gradient here, gradient of the layer), zeros where none arrived."""
        zero = torch.zeros_like

        def of(p: Tensor) -> Tensor:
            return zero(p) if p.grad is None else p.grad

        return [(of(mine), theirs.reshape(mine.shape)) for mine, theirs in self._slices(of)]

    def statistics(self) -> list[tuple[Tensor, Tensor]]:
        conv = self.conv[0]
        found = []
        for e, expert in enumerate(self.experts):
            norms = [(self.norms[e], conv.norm)] if conv.norm is not None else []
            if conv.config.base == "gin":
                norms.append((expert.inner, conv.experts.norm))
            for mine, theirs in norms:
                found += [(mine.running_mean, theirs.running_mean[e]), (mine.running_var, theirs.running_var[e])]
        return found

    def _slices(self, of) -> list[tuple[Tensor, Tensor]]:  # type: ignore[no-untyped-def]
        conv, found = self.conv[0], []
        for e, expert in enumerate(self.experts):
            stacked = [(self.norms[e], conv.norm)] if conv.norm is not None else []
            if conv.config.base == "gin":
                found.append((expert.eps, of(conv.experts.eps)[e]))
                stacked += [(getattr(expert, n), getattr(conv.experts, n)) for n in ("first", "second")]
                stacked.append((expert.inner, conv.experts.norm))
            else:
                stacked.append((expert.linear, conv.experts.linear))
            for mine, theirs in stacked:
                found += [(mine.weight, of(theirs.weight)[e]), (mine.bias, of(theirs.bias)[e])]
            if self.bonds:
                messages = conv.experts.messages
                near = e < conv.num_hop1
                encoder, position = (messages.bonds, e) if near else (messages.pairs, e - conv.num_hop1)
                found += [(m.weight, of(t)[position]) for m, t in zip(expert.bonds, encoder.tables, strict=True)]
                if conv.config.base != "gin":
                    found.append((expert.root.weight, of(messages.root)[e]))
        return found

    def forward(self, x: Tensor, molecules: Molecules, gate: Tensor, index: Tensor) -> Tensor:
        conv = self.conv[0]
        y = torch.zeros(x.shape[0], conv.out_dim, dtype=x.dtype)
        for e, expert in enumerate(self.experts):
            if not self.bonds:
                h = expert.before_mlp(x, molecules.edge_index)
            else:
                h = expert.before_mlp(x, molecules.bonds if e < conv.num_hop1 else molecules.paths())
            every = conv.num_experts == 1 or (conv.config.norm == "all_nodes" and self.training)
            rows = torch.arange(x.shape[0]) if every else (index == e).any(1).nonzero().squeeze(1)
            h = h[rows]
            if conv.config.base == "gin":
                h = expert.second(F.relu(batch_norm(expert.inner, expert.first(h))))
            if conv.norm is not None:
                h = batch_norm(self.norms[e], h)
            weight = torch.where(index == e, gate, 0.0).sum(1)[rows]
            y = y.index_add(0, rows, weight[:, None] * h)
        return y / conv.num_experts if conv.config.combine == "mean" else y


def batch_norm(norm: nn.BatchNorm1d, h: Tensor) -> Tensor:
    """BatchNorm, by running statistics where fewer than two rows give no variance."""
    if norm.training and h.shape[0] < 2:
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        return (h - norm.running_mean) * scale + norm.bias
    return norm(h)
