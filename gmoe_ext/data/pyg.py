"""Convert PyTorch Geometric's Data objects and datasets; only attributes are read, so PyG is never imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..errors import DataError
from . import splits
from .arrays import Array, Arrays
from .molecules import MoleculeData
from .node import NodeData, read_nodes
from .splits import Split


def from_pyg(source: Any, name: str = "pyg", split_seed: int = 0) -> NodeData | MoleculeData:
    """Convert a PyG ``Data``, a dataset of one graph, or a dataset (or list) of OGB-style molecules.

    Args:
        source: node data: ``x`` [N, F], ``edge_index`` [2, M], ``y`` [N], and ``train_mask``, ``val_mask``,
            ``test_mask`` ([N], or [N, S] with S splits). Molecules: ``x`` [n, 9] and ``edge_attr`` [m, 3] of OGB's
            categories, both directions of each bond, ``y`` [1, tasks].
        name: shown in tables and results.
        split_seed: seed of a split drawn because the source has none; selects one of S splits.

    Raises:
        DataError: attributes are missing or do not fit together.

    Examples:
        >>> from_pyg(torch_geometric.datasets.Planetoid("data", "Cora"), "cora")  # doctest: +SKIP
        NodeData(cora: 2,708 nodes, 5,278 edges, 1,433 features, 7 classes, 140/500/1,000 (public))
    """
    if hasattr(source, "edge_index"):
        return _nodes(source, name, split_seed)
    graphs = list(source)
    if len(graphs) == 1:
        return _nodes(graphs[0], name, split_seed)
    if not graphs:
        raise DataError(f"data '{name}': expected at least one graph, got an empty dataset")
    split = _official_split(source, name, len(graphs)) or splits.random(len(graphs), split_seed)
    return _molecules(graphs, split, name)


def _nodes(source: Any, name: str, split_seed: int) -> NodeData:
    masks = ("train_mask", "val_mask", "test_mask") if getattr(source, "train_mask", None) is not None else ()
    held = {key: _array(source, key, name) for key in ("x", "edge_index", "y", *masks)}
    arrays = Arrays(f"data '{name}'", held)
    num_nodes = len(arrays.take("x", "real", (None, None)))
    held["num_nodes"] = np.array(num_nodes)
    for key in masks:
        mask = arrays.take(key, "boolean", (num_nodes,), (num_nodes, None))
        chosen = mask if mask.ndim == 1 else mask[:, split_seed % mask.shape[1]]
        held[key.replace("mask", "idx")] = np.flatnonzero(chosen)
    data = read_nodes(name, arrays, "public")
    return data if masks else data.with_split(splits.per_class(data.y, seed=split_seed))


def _molecules(graphs: Sequence[Any], split: Split, name: str) -> MoleculeData:
    edges = [_array(graph, "edge_index", name) for graph in graphs]
    # Every bond comes in both directions; the ascending one is kept.
    kept = [pairs[0] < pairs[1] for pairs in edges]
    features = [_array(graph, "x", name) for graph in graphs]
    bonds = [_array(graph, "edge_attr", name)[keep] for graph, keep in zip(graphs, kept, strict=True)]
    return MoleculeData.from_arrays(
        name,
        np.concatenate(features),
        np.array([len(rows) for rows in features]),
        np.concatenate([pairs[:, keep] for pairs, keep in zip(edges, kept, strict=True)], axis=1),
        np.concatenate(bonds),
        np.array([len(rows) for rows in bonds]),
        np.concatenate([_array(graph, "y", name).reshape(1, -1) for graph in graphs]),
        split,
    )


def _official_split(source: Any, name: str, size: int) -> Split | None:
    if not hasattr(source, "get_idx_split"):
        return None
    parts = {f"{part}_idx": np.asarray(ids) for part, ids in source.get_idx_split().items()}
    return splits.from_arrays(Arrays(f"data '{name}'", parts), size, "official")


def _array(source: Any, attribute: str, name: str) -> Array:
    value = getattr(source, attribute, None)
    if value is None:
        raise DataError(f"data '{name}': the graph has no '{attribute}'")
    array: Array = value.numpy(force=True) if isinstance(value, torch.Tensor) else np.asarray(value)
    return array
