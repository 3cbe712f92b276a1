"""Convert PyTorch Geometric's Data objects and datasets; only attributes are read, so PyG is never imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch.utils.data

from ..errors import DataError
from .arrays import Array, Arrays, tell
from .molecules import MoleculeData, read_molecules
from .node import NodeData, read_nodes
from .splits import Rule, part_of

_MOLECULE = ("x", "edge_index", "edge_attr", "y")


def from_pyg(source: Any, name: str = "pyg", split_seed: int = 0, metric: str | None = None) -> NodeData | MoleculeData:
    """Convert a PyG ``Data``, a dataset of one graph, or a dataset (or list) of OGB-style molecules.

    The split is that of the dataset's ``get_idx_split()``, as OGB's have it, or of the masks or ids in ``Data``; else
    one is drawn, 20 training and 30 validation nodes of every class, or 80/10/10 of the molecules.

    Args:
        source: node data: ``x`` [N, F], ``edge_index`` [2, M], ``y`` [N] or 0/1/NaN [N, tasks], and ``train_mask``,
            ``val_mask``, ``test_mask`` ([N], or [N, S] with S splits). Molecules: ``x`` [n, 9] and ``edge_attr`` [m, 3]
            of OGB's categories, each bond in one or both directions, ``y`` [1, tasks].
        name: shown in tables and results.
        split_seed: seed of a split drawn because the source has none; selects one of S splits.
        metric: of molecules, as in :func:`gmoe_ext.data.load`.

    Raises:
        DataError: attributes are missing or do not fit together.

    Examples:
        >>> from_pyg(torch_geometric.datasets.Planetoid("data", "Cora"), "cora")  # doctest: +SKIP
        NodeData(cora: 2,708 nodes, 5,278 edges, 1,433 features, 7 classes, 140/500/1,000 (public))
    """
    origin = f"data '{name}'"
    if hasattr(source, "node_types"):
        raise DataError(f"{origin}: a graph with several types of nodes cannot be converted; pass a homogeneous one")
    if hasattr(source, "to_data_list"):
        source = source.to_data_list()  # a Batch
    single = hasattr(source, "edge_index") and not isinstance(source, torch.utils.data.Dataset)
    try:
        graphs = [source] if single else list(source)
    except TypeError as error:
        got = type(source).__name__
        raise DataError(f"{origin}: expected a Data, a dataset or a list of them, got {got}") from error
    if not graphs:
        raise DataError(f"{origin}: expected at least one graph, got an empty dataset")
    official = _official(source, origin)
    rule = Rule("official" if official else "public", seed=split_seed)
    if len(graphs) > 1 or _is_molecule(graphs[0]):
        molecules = read_molecules(name, _molecule_arrays(graphs, origin, official), rule, metric)
        tell(name, molecules.remarks)
        return molecules
    if metric not in (None, "accuracy", "rocauc"):
        raise DataError(f"{origin}: nodes are classified, got metric '{metric}'")
    nodes = read_nodes(name, _node_arrays(graphs[0], origin, official), rule)
    tell(name, nodes.remarks)
    return nodes


def _official(source: Any, origin: str) -> Mapping[str, Any]:
    """The parts that get_idx_split() names, if the source has it."""
    if not hasattr(source, "get_idx_split"):
        return {}
    if getattr(source, "_indices", None) is not None:
        raise DataError(
            f"{origin}: get_idx_split() is of the whole dataset, but this is a part of it\n"
            "  fix: pass the whole dataset, or a list of graphs to draw a split from"
        )
    official = source.get_idx_split()
    if not isinstance(official, Mapping) or any(isinstance(ids, Mapping) for ids in official.values()):
        raise DataError(f"{origin}: expected ids by part from get_idx_split(), got {type(official).__name__}")
    return official


def _is_molecule(graph: Any) -> bool:
    x, edge_attr, y = (getattr(graph, key, None) for key in ("x", "edge_attr", "y"))
    shapes = [list(getattr(value, "shape", ())) for value in (x, edge_attr, y)]
    return [shape[1:] for shape in shapes[:2]] == [[9], [3]] and shapes[2][:1] == [1] and shapes[0][0] > 1


def _node_arrays(graph: Any, origin: str, official: Mapping[str, Any]) -> Arrays:
    held, names = _attributes(graph), ("x", "edge_index", "y")
    _expect(held, names, origin)
    known = {key: value for key, value in held.items() if key in names or part_of(key)}
    arrays = Arrays.of(origin, known | {key: ids for key, ids in official.items() if ids is not None})
    arrays.arrays["num_nodes"] = np.array(len(arrays.take("x", "real", (None, None))))
    _remark_unread(arrays, set(held) - set(known))
    return arrays


def _molecule_arrays(graphs: Sequence[Any], origin: str, official: Mapping[str, Any]) -> Arrays:
    parts: dict[str, list[Array]] = {key: [] for key in _MOLECULE}
    for number, graph in enumerate(graphs):
        where = f"{origin}: molecule {number}"
        held = _attributes(graph)
        _expect(held, _MOLECULE, where)
        arrays = Arrays.of(where, {key: held[key] for key in _MOLECULE})
        parts["x"].append(arrays.take("x", "integer", (None, 9)))
        bonds = arrays.take("edge_index", "integer", (2, None))
        parts["edge_index"].append(bonds)
        parts["edge_attr"].append(arrays.take("edge_attr", "integer", (bonds.shape[1], 3)))
        tasks = parts["y"][0].shape[1] if parts["y"] else None
        parts["y"].append(arrays.take("y", "real", (1, tasks), (tasks,)).reshape(1, -1))
    whole = Arrays.of(origin, official)
    whole.arrays |= {"node_feat": np.concatenate(parts["x"]), "num_nodes": np.array([len(x) for x in parts["x"]])}
    whole.arrays |= {"bond_index": np.concatenate(parts["edge_index"], axis=1), "y": np.concatenate(parts["y"])}
    whole.arrays |= {"bond_feat": np.concatenate(parts["edge_attr"])}
    whole.arrays |= {"num_bonds": np.array([len(rows) for rows in parts["edge_attr"]])}
    _remark_unread(whole, {key for graph in graphs for key in _attributes(graph)} - set(_MOLECULE))
    return whole


def _remark_unread(arrays: Arrays, names: set[str]) -> None:
    if unread := sorted(names - {"num_nodes"}):
        arrays.remark(f"not read: {', '.join(unread)}")


def _attributes(graph: Any) -> dict[str, Any]:
    held = graph.to_dict() if hasattr(graph, "to_dict") else getattr(graph, "__dict__", {})
    return {key: value for key, value in held.items() if value is not None}


def _expect(held: dict[str, Any], names: tuple[str, ...], where: str) -> None:
    for key in names:
        if key not in held:
            raise DataError(f"{where}: the graph has no '{key}', found {', '.join(sorted(held)) or 'nothing'}")
