"""Seeded inputs of the claims: rows, routings, graphs and molecules."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gmoe_ext import FeatureRows, Graph
from gmoe_ext.data.molecules import ATOM_DIMS, BOND_DIMS, MoleculeData
from gmoe_ext.data.splits import Split

# Molecules in number and shape like those of OGB: 24 atoms, 25 bonds, two rings.
ATOMS = 24
MOST_BONDS = 4  # of one atom
REACH = 3  # a new atom is bound to one of the last few: chains with short branches
RINGS = (5, 5)  # how far back the bonds reach that close a ring


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def routing(num_rows: int, num_experts: int, k: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw k different, equally likely experts for each row: gate [N, k], which sums to 1, and index [N, k]."""
    scores = torch.rand(num_rows, num_experts, generator=torch.Generator().manual_seed(seed))
    top, index = scores.topk(k, dim=1)
    return torch.softmax(top, dim=1), index


def feature_rows(num_rows: int, num_columns: int, values: int, seed: int = 0) -> FeatureRows:
    """Draw bags of words: about so many values a row, and words whose frequency falls off as their rank."""
    generator = torch.Generator().manual_seed(seed)
    frequency = 1.0 / torch.arange(10.0, 10.0 + num_columns)
    columns = torch.multinomial(frequency, num_rows * values, replacement=True, generator=generator)
    counts = torch.rand(num_rows * values, generator=generator) + 0.5
    return FeatureRows.from_csr(torch.arange(0, num_rows * values + 1, values), columns, counts, num_columns)


def power_law_graph(num_nodes: int, num_edges: int, seed: int) -> Graph:
    """Make a symmetric graph with GCN weights whose degrees fall off as rank^-1/2; num_edges includes self loops.

    Ranks are assigned to nodes at random, so that hubs lie anywhere in memory. Pairs may repeat.
    """
    generator = torch.Generator().manual_seed(seed)
    rank = torch.randperm(num_nodes, generator=generator)
    pairs = torch.rand(2, (num_edges - num_nodes) // 2, generator=generator).square()
    edges = rank[(pairs * num_nodes).long().clamp_max(num_nodes - 1)]
    edges = edges[:, edges[0] != edges[1]]
    return Graph.from_edge_index(torch.cat([edges, edges.flip(0)], dim=1), num_nodes).gcn_norm()


def uniform_graph(num_nodes: int, num_edges: int, seed: int) -> Graph:
    """Make a weighted graph with rows of nearly equal length and uniform columns, without sorting an edge list."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.arange(num_nodes + 1) * num_edges // num_nodes
    columns = torch.randint(num_nodes, (num_edges,), generator=generator, dtype=torch.int32)
    return Graph(num_nodes, offsets, columns, torch.rand(num_edges, generator=generator))


def made_up_molecules(num_graphs: int, seed: int, name: str = "made-up molecules") -> MoleculeData:
    """Make random molecules with 0/1 labels, split 8/1/1 in order."""
    generator = np.random.default_rng(seed)
    bonds = [_bonds(generator) for _ in range(num_graphs)]
    flat = np.concatenate(bonds)
    return MoleculeData.from_arrays(
        name,
        generator.integers(0, ATOM_DIMS, size=(num_graphs * ATOMS, len(ATOM_DIMS))),
        np.full(num_graphs, ATOMS),
        flat.T,
        generator.integers(0, BOND_DIMS, size=(len(flat), len(BOND_DIMS))),
        np.array([len(one) for one in bonds]),
        generator.integers(0, 2, size=(num_graphs, 1)).astype(np.float32),
        _split(num_graphs),
    )


def _bonds(generator: np.random.Generator) -> np.ndarray:
    """Bonds [B, 2] of one molecule: a tree whose atoms have at most four, then the rings that fit."""
    degree = np.zeros(ATOMS, dtype=np.int64)
    bonds: list[tuple[int, int]] = []

    def bind(old: int, new: int) -> None:
        bonds.append((old, new))
        degree[[old, new]] += 1

    for atom in range(1, ATOMS):
        free = [other for other in range(max(0, atom - REACH), atom) if degree[other] < MOST_BONDS]
        bind(int(generator.choice(free)), atom)
    for steps in RINGS:
        atom = int(generator.integers(steps, ATOMS))
        if (atom - steps, atom) not in bonds and max(degree[atom - steps], degree[atom]) < MOST_BONDS:
            bind(atom - steps, atom)
    return np.array(bonds)


def _split(size: int) -> Split:
    ids = torch.arange(size)
    train, val = 8 * size // 10, 9 * size // 10
    return Split(ids[:train], ids[train:val], ids[val:], "made up")
