"""Convert published files to the arrays of NAME.npz."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..feature_rows import dense_of
from .arrays import Array, Arrays, ascending_pairs, read_npz
from .node import read_features
from .pickled import read_pickle as _unpickle


def gnn_benchmark(files: list[Path]) -> dict[str, Array]:
    """Convert an npz file of shchur/gnn-benchmark as the papers do: unweighted, undirected, largest component.

    Raises:
        DataError: the file is damaged or holds other arrays.
    """
    adjacency = [f"adj_{part}" for part in ("indices", "indptr", "shape")]
    attributes = [f"attr_{part}" for part in ("data", "indices", "indptr", "shape")]
    # Names of nodes and classes are stored as Python objects and are not read.
    arrays = read_npz(files[0], (*adjacency, *attributes, "labels"))
    num_nodes = int(arrays.take("adj_shape", "integer", (2,))[0])
    targets = arrays.indices("adj_indices", num_nodes, (None,))
    edges = ascending_pairs(np.stack([arrays.csr_rows("adj_indptr", num_nodes, len(targets)), targets]), num_nodes)
    kept = np.flatnonzero(_largest_component(edges, num_nodes))
    local = np.full(num_nodes, -1)
    local[kept] = np.arange(len(kept))
    edges = local[edges]
    labels = arrays.take("labels", "integer", (num_nodes,))
    values = arrays.finite("attr_data", (None,))
    num_features = max(0, int(arrays.take("attr_shape", "integer", (2,))[1]))
    columns = arrays.indices("attr_indices", num_features, (len(values),))
    rows = local[arrays.csr_rows("attr_indptr", num_nodes, len(values))]
    taken = rows >= 0
    return {
        "edge_index": edges[:, edges[0] >= 0].astype(np.int32),
        "num_nodes": np.array(len(kept)),
        "y": labels[kept].astype(np.int64),
        "orig_node_index": kept,
        **_csr(rows[taken], columns[taken], values[taken], (len(kept), num_features)),
    }


def planetoid(files: list[Path]) -> dict[str, Array]:
    """Convert the eight files ind.NAME.* of kimiyoung/planetoid, pickles of Python 2, with their public split.

    Raises:
        DataError: a file is damaged or holds anything else, or the files do not fit together.
    """
    held = {path.name.split(".", 2)[2]: path for path in files}
    allx, tx = (_dense(held[part]) for part in ("allx", "tx"))
    labels = [_one_hot(held[part]) for part in ("y", "ally", "ty")]
    graph, test = _neighbours(held["graph"]), _ids(held["test.index"])
    shapes = allx.shape[1] == tx.shape[1] and len({part.shape[1] for part in labels}) == 1
    counts = [len(labels[0]) < len(allx), len(labels[1]) == len(allx), len(labels[2]) == len(test) == len(tx)]
    num_nodes = max(int(test.max(initial=-1)) + 1, len(allx), int(graph.max(initial=-1)) + 1)
    if not shapes or not all(counts) or test.min(initial=len(allx)) < len(allx) or num_nodes > len(allx) + 10 * len(tx):
        raise DataError(f"{files[0].parent}: the files of {files[0].name.split('.')[1]} do not fit together")
    x = np.zeros((num_nodes, allx.shape[1]), dtype=np.float32)
    y = np.zeros(num_nodes, dtype=np.int64)
    x[: len(allx)], x[test] = allx, tx
    y[: len(allx)], y[test] = labels[1].argmax(1), labels[2].argmax(1)
    rows, columns = np.nonzero(x)
    arrays = {
        "edge_index": ascending_pairs(graph, num_nodes).astype(np.int32),
        "num_nodes": np.array(num_nodes),
        "y": y,
        **_csr(rows, columns, x[rows, columns], x.shape),
        "train_idx": np.arange(len(labels[0])),
        "val_idx": np.arange(len(labels[0]), len(labels[0]) + 500),
        "test_idx": np.sort(test),
    }
    unlabelled = np.setdiff1d(np.arange(len(allx), num_nodes), test)
    return arrays | ({"unlabelled_nodes": unlabelled} if len(unlabelled) else {})


def _dense(path: Path) -> Array:
    matrix = _unpickle(path)
    shape = matrix.get("_shape", matrix.get("shape")) if isinstance(matrix, dict) else None
    if not isinstance(shape, tuple) or len(shape) != 2 or not all(type(size) is int and size >= 0 for size in shape):
        raise DataError(f"{path}: expected a sparse matrix, got {type(matrix).__name__}")
    parts = {
        f"x_{key}": matrix[key] for key in ("data", "indices", "indptr") if isinstance(matrix.get(key), np.ndarray)
    }
    dense: Array = dense_of(read_features(Arrays(path, {"x_shape": np.array(shape), **parts}), shape[0])).numpy()
    return dense


def _one_hot(path: Path) -> Array:
    labels = _unpickle(path)
    if not isinstance(labels, np.ndarray) or labels.ndim != 2 or labels.shape[1] == 0:
        raise DataError(f"{path}: expected an array of labels [nodes, classes], got {type(labels).__name__}")
    return labels


def _ids(path: Path) -> Array:
    try:
        return np.loadtxt(path, dtype=np.int64, ndmin=1)
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: expected one node id per line ({error})") from error


def _neighbours(path: Path) -> Array:
    """Read a dictionary of lists as edges [2, E]."""
    graph = _unpickle(path)
    lists: list[Any] = list(graph.values()) if isinstance(graph, dict) else [None]
    plain = all(isinstance(one, list) for one in lists) and sum(map(len, lists)) <= path.stat().st_size
    if not plain or not all(type(node) is int and 0 <= node < 2**31 for one in (graph, *lists) for node in one):
        raise DataError(f"{path}: expected a dictionary of lists of node ids")
    flat = np.array([node for one in lists for node in one], dtype=np.int64)
    return np.stack([np.repeat(np.array(list(graph), dtype=np.int64), [len(one) for one in lists]), flat])


def _largest_component(edges: Array, num_nodes: int) -> Array:
    # Every node takes the smallest id among its neighbours, then the id that node has, until nothing changes.
    component = np.arange(num_nodes)
    while True:
        lowest = component.copy()
        np.minimum.at(lowest, edges[0], component[edges[1]])
        np.minimum.at(lowest, edges[1], component[edges[0]])
        lowest = lowest[lowest]
        if np.array_equal(lowest, component):
            largest: Array = component == np.bincount(component, minlength=1).argmax()
            return largest
        component = lowest


def _csr(rows: Array, columns: Array, values: Array, shape: tuple[int, int]) -> dict[str, Array]:
    # `rows` are ascending.
    return {
        "x_indptr": np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=shape[0]))]),
        "x_indices": columns.astype(np.int32),
        "x_data": values.astype(np.float32),
        "x_shape": np.array(shape),
    }
