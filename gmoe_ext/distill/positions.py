"""DeepWalk positions: a node's place in the graph as features, so that a student needs no graph.

N nodes, P position dimension.
"""

from __future__ import annotations

import zlib
from typing import Literal

import torch
from torch import Tensor

from .. import extras
from ..errors import expect, expect_choice
from ..feature_rows import FeatureRows, Features
from ..graph import Graph, expect_graph
from ..ops import aggregate, random_walk


def deepwalk(
    graph: Graph,
    dim: int = 64,
    walk_length: int = 50,
    num_walks: int = 5,
    window: int = 5,
    epochs: int = 1,
    seed: int = 0,
) -> Tensor:
    """Embed nodes by skip-gram over uniform random walks (DeepWalk; RbM, section 4.2).

    Settings beyond the arguments are those of the released code: hierarchical softmax and 5 negative samples
    together, learning rate 0.025 falling to 1e-4, frequent nodes down-sampled at 1e-3.

    Args:
        graph: undirected, with both directions of every edge; the observed graph in the inductive setting.
        dim: P.
        walk_length: nodes per walk.
        num_walks: walks from each node.
        window: skip-gram window, in nodes to either side.
        epochs: passes over the walks.
        seed: seeds the walks, their order, and the embedding.

    Returns:
        Positions [N, P] float32 on the CPU, unscaled.

    Raises:
        MissingExtraError: gensim is not installed.
        ValueError: a setting is below 1.

    Determinism: the same seed gives the same bits, in any process (one worker, no dependence on string hashes).

    Examples:
        >>> positions = deepwalk(data.graph, dim=64, walk_length=30, num_walks=1)
    """
    settings = {"dim": dim, "walk_length": walk_length, "num_walks": num_walks, "window": window, "epochs": epochs}
    for name, value in settings.items():
        expect(value >= 1, "deepwalk", name, "of at least 1", value)
    expect_graph("deepwalk", graph)
    skip_gram = extras.load("gensim.models").Word2Vec
    if graph.num_nodes == 0:
        return torch.zeros(0, dim, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    starts = torch.cat([torch.randperm(graph.num_nodes, generator=generator) for _ in range(num_walks)])
    walks = random_walk(graph.to("cpu"), starts, walk_length, seed)
    names = [str(node) for node in range(graph.num_nodes)]
    model = skip_gram(
        sentences=[[names[node] for node in walk] for walk in walks.tolist()],
        vector_size=dim,
        window=window,
        epochs=epochs,
        sg=1,
        hs=1,
        min_count=0,
        workers=1,
        seed=seed & 0xFFFFFFFF,
        hashfxn=_stable_hash,
    )
    return torch.from_numpy(model.wv[names].copy()).float()


def _stable_hash(text: object) -> int:
    # Python's own hash of strings changes from process to process.
    return zlib.crc32(str(text).encode())


def extend_positions(positions_OP: Tensor, graph: Graph, observed_O: Tensor, own: bool = True) -> Tensor:
    """Place held-out nodes at the mean position of their observed neighbours, or at zero if they have none.

    Args:
        positions_OP: positions of the observed nodes.
        graph: the whole graph, over N nodes.
        observed_O: int64 [O] global ids of the observed nodes, in the order of ``positions``.
        own: observed nodes keep their own positions. False gives them, too, the mean of their observed neighbours
            (or their own if they have none), so that training sees positions of the same kind as testing.

    Returns:
        Positions [N, P].

    Raises:
        ValueError: the two arguments name different numbers of nodes.

    Examples:
        >>> everywhere = extend_positions(deepwalk(view.observed.graph), data.graph, view.observed_nodes)
    """
    expect_graph("extend_positions", graph)
    given, rows = len(positions_OP), observed_O.numel()
    expect(given == rows, "extend_positions", "positions", f"with a row per observed node ({rows})", given)
    # An extra column counts the observed neighbours, so that one sparse product gives both sum and count.
    known = positions_OP.new_zeros(graph.num_nodes, positions_OP.shape[1] + 1)
    known[observed_O] = torch.cat([positions_OP, positions_OP.new_ones(observed_O.numel(), 1)], dim=1)
    unweighted = Graph(graph.num_nodes, graph.offsets, graph.columns)
    summed = aggregate(unweighted, known)
    everywhere = summed[:, :-1] / summed[:, -1:].clamp_min(1.0)
    alone = summed[observed_O, -1:] == 0
    everywhere[observed_O] = positions_OP if own else torch.where(alone, positions_OP, everywhere[observed_O])
    return everywhere


def student_inputs(
    x_ND: Features,
    positions_NP: Tensor | None,
    scale: Literal["none", "features"] = "none",
    observed: Tensor | None = None,
) -> Features:
    """Concatenate features and positions.

    Args:
        x_ND: node features.
        positions_NP: positions, or None for features alone.
        scale: "none" leaves positions unscaled; "features" gives them the mean row norm of the features, so that
            neither dominates the router's cosines.
        observed: int64 ids of the rows that determine the scale; None means all.

    Returns:
        [N, D + P] in x's dtype, of x's kind.

    Raises:
        ValueError: row counts differ or the scale is unknown.

    Examples:
        >>> inputs = student_inputs(data.x, positions, scale="features")
    """
    expect_choice(scale, ("none", "features"), "student_inputs", "scale")
    if positions_NP is None:
        return x_ND
    given, rows = len(positions_NP), len(x_ND)
    expect(given == rows, "student_inputs", "positions", f"with a row per row of 'x' ({rows})", given)
    if scale == "features":
        seen = slice(None) if observed is None else observed
        own = positions_NP[seen].norm(dim=1).mean().clamp_min(1e-12)
        norm_N = x_ND.norms() if isinstance(x_ND, FeatureRows) else x_ND.norm(dim=1)
        positions_NP = positions_NP * (norm_N[seen].mean() / own)
    if isinstance(x_ND, FeatureRows):
        return x_ND.cat(positions_NP.to(x_ND.device))
    return torch.cat([x_ND, positions_NP.to(x_ND)], dim=1)
