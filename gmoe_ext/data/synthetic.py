"""Generate seeded data sets: a community graph whose classes need two hops, and small molecules."""

from __future__ import annotations

import numpy as np
import torch

from .arrays import Array
from .molecules import ATOM_DIMS, BOND_DIMS, MoleculeData
from .node import NodeData, undirected_graph
from .splits import random

# Chosen by trial so that a GCN gets 80-90% of the nodes right, hop-1 and hop-2 experts together 4-6 points more, and an
# MLP without the graph fewer than half.
_LEAVES = 0.75  # fraction of leaves in a two-sided community; the others are connectors
_LEAF_EDGES = 3.5  # edges drawn per leaf: few, so that its connectors weigh as much as the nodes behind them
_CROSS = 0.2  # fraction of the edges that leave the community
_OWN = 0.35  # fraction of the nodes that show their own class; the others show a random one
_REGION = 0.5  # offset along the direction that tells the two kinds of community apart; the noise is 1
_SCALE = 0.3  # of all features, so that their rows are about as long as those of DeepWalk positions

_MEMBER, _LEAF, _CONNECTOR = 0, 1, 2


def communities(
    num_nodes: int = 12_000,
    num_edges: int | None = None,
    num_features: int = 64,
    num_classes: int = 8,
    communities_per_class: int = 4,
    train: float = 0.1,
    val: float = 0.1,
    seed: int = 0,
    split_seed: int = 0,
) -> NodeData:
    """Generate an attributed graph of communities whose classes need both hop-1 and hop-2 evidence.

    Every community has one class; a node's own features mostly show a random one. Half of the communities are
    homophilous: the neighbours together show the class. The others are two-sided: leaves are linked only to connectors,
    which all show the same wrong class, so only the nodes two hops away, leaves again, show the right one. One
    direction of feature space weakly tells the two kinds apart, so that a gate can learn which hop to trust. The
    position in the graph (DeepWalk) reveals the community.

    Args:
        num_nodes: N.
        num_edges: undirected edges drawn, by default about 6 per node; the few duplicates are dropped.
        num_features: F.
        num_classes: C.
        communities_per_class: even, so that each class has as many communities of one kind as of the other.
        train, val: fractions of the nodes; the rest are test nodes.
        seed: of the graph, its features and labels.
        split_seed: of the split.

    Returns:
        NodeData named 'communities'.
    """
    if num_nodes < 4 * num_classes * communities_per_class:
        least = 4 * num_classes * communities_per_class
        raise ValueError(f"synthetic.communities: expected 'num_nodes' >= {least}, four per community, got {num_nodes}")
    generator = np.random.default_rng(seed)
    count = num_classes * communities_per_class
    community = np.sort(generator.integers(count, size=num_nodes))
    label = community % num_classes
    role = np.where(community < count // 2, _MEMBER, np.where(generator.random(num_nodes) < _LEAVES, _LEAF, _CONNECTOR))
    wrong = (np.arange(count) + 1 + generator.integers(num_classes - 1, size=count)) % num_classes
    noisy = np.where(generator.random(num_nodes) < _OWN, label, generator.integers(num_classes, size=num_nodes))
    shown = np.where(role == _CONNECTOR, wrong[community], noisy)

    x = generator.normal(size=(num_classes, num_features))[shown] + generator.normal(size=(num_nodes, num_features))
    direction = generator.normal(size=num_features)
    direction /= np.linalg.norm(direction)
    x += _REGION * np.where(role == _MEMBER, 1.0, -1.0)[:, None] * direction
    edges = _community_edges(generator, community, role, 73 * num_nodes // 12 if num_edges is None else num_edges)
    split = random(num_nodes, split_seed, train, val)
    return NodeData(
        "communities",
        torch.from_numpy((_SCALE * x).astype(np.float32)),
        undirected_graph(edges, num_nodes),
        torch.from_numpy(label),
        *split[:3],
        num_classes,
        split=split.rule,
    )


def molecules(
    num_graphs: int = 60, num_tasks: int = 1, regression: bool = False, seed: int = 0, split_seed: int = 0
) -> MoleculeData:
    """Generate small random molecules, trees with a few rings, whose labels depend on their atoms and bonds.

    Args:
        num_graphs: G.
        num_tasks: labels per molecule; task t counts atoms of category t + 1 and bonds of order t % 5.
        regression: make real labels (metric 'rmse') instead of 0/1 with a tenth missing (metric 'rocauc').
        seed: of the molecules and labels.
        split_seed: of the split, 80/10/10.
    """
    generator = np.random.default_rng(seed)
    atoms = generator.integers(2, 14, size=num_graphs)
    first = np.cumsum(atoms) - atoms
    # Each atom is bonded to an earlier one; every third molecule, if it has 5 atoms or more, closes one ring.
    local = np.arange(atoms.sum()) - np.repeat(first, atoms)
    child = local[local > 0]
    parent = (generator.random(len(child)) * child).astype(np.int64)
    owner = np.repeat(np.arange(num_graphs), atoms - 1)
    last = child == atoms[owner] - 1
    parent[last] = child[last] - 1
    ring = np.flatnonzero((atoms >= 5) & (np.arange(num_graphs) % 3 == 0))
    ends = np.concatenate([np.stack([parent, child]), np.stack([np.zeros_like(ring), atoms[ring] - 1])], 1)
    owner = np.concatenate([owner, ring])
    order = np.argsort(owner, kind="stable")
    bonds = np.bincount(owner, minlength=num_graphs)

    atom_kinds = generator.integers(0, ATOM_DIMS, size=(int(atoms.sum()), len(ATOM_DIMS)))
    atom_kinds[:, 0] = generator.integers(0, 8, size=len(atom_kinds))
    bond_kinds = generator.integers(0, BOND_DIMS, size=(len(owner), len(BOND_DIMS)))
    tasks = np.arange(num_tasks)
    score = np.add.reduceat((atom_kinds[:, :1] == tasks % 7 + 1).astype(float), first, axis=0)
    np.add.at(score, owner[order], 0.5 * (bond_kinds[:, :1] == tasks % BOND_DIMS[0]))
    score += 0.1 * generator.normal(size=score.shape)
    if not regression:
        score = (score > np.median(score, axis=0)).astype(float)
        score[generator.random(score.shape) < 0.1] = np.nan
    return MoleculeData.from_arrays(
        "molecules", atom_kinds, atoms, ends[:, order], bond_kinds, bonds, score, random(num_graphs, split_seed)
    )


def _community_edges(generator: np.random.Generator, community: Array, role: Array, num_edges: int) -> Array:
    leaves, connectors = np.flatnonzero(role == _LEAF), np.flatnonzero(role == _CONNECTOR)
    members, everyone = np.flatnonzero(role == _MEMBER), np.arange(len(role))

    def some(nodes: Array, count: int) -> Array:
        return nodes[generator.integers(len(nodes), size=count)]

    def neighbour(of: Array, among: Array) -> Array:
        # Both `among` and the communities ascend, so the nodes of one community are a range. In a graph of a few
        # hundred nodes the range can be empty; then the next community's first node is taken.
        low = np.searchsorted(community[among], community[of], side="left")
        high = np.searchsorted(community[among], community[of], side="right")
        chosen = low + (generator.random(len(of)) * (high - low)).astype(np.int64)
        return among[np.minimum(chosen, len(among) - 1)]

    inside = some(leaves, int(_LEAF_EDGES * len(leaves)))
    stray = some(leaves, int(_CROSS * len(inside)))
    rest = num_edges - len(inside) - len(stray)
    close = some(members, int((1 - _CROSS) * rest))
    far = some(members, rest - len(close))
    pairs = (
        (inside, neighbour(inside, connectors)),
        (stray, some(connectors, len(stray))),
        (close, neighbour(close, members)),
        (far, some(everyone, len(far))),
    )
    return np.concatenate([np.stack(pair) for pair in pairs], axis=1)
