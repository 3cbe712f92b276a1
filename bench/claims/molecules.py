"""Molecules made up at random, in number and shape like OGB's sets: 24 atoms, 25 bonds, two rings."""

from __future__ import annotations

import numpy as np
import torch

from gmoe_ext.data.molecules import ATOM_DIMS, BOND_DIMS, MoleculeData
from gmoe_ext.data.splits import Split

ATOMS = 24
MOST_BONDS = 4  # of one atom
REACH = 3  # a new atom is bound to one of the last few: chains with short branches
RINGS = (5, 5)  # steps back of the bonds that close a ring


def made_up(num_graphs: int, seed: int, name: str = "made-up molecules") -> MoleculeData:
    """Molecules with 0/1 labels, split 8/1/1 in their order."""
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
