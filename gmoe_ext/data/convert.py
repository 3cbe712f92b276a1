"""From the files that data sets are published in to the arrays of NAME.npz (docs/guides/data.md)."""

from __future__ import annotations

import copyreg
import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..errors import DataError
from .files import Array, ArrayFile, read_npz


def gnn_benchmark(files: list[Path]) -> dict[str, Array]:
    """Convert one npz of shchur/gnn-benchmark as the papers do: unweighted, undirected, largest component.

    Raises:
        DataError: the file is damaged or holds other arrays.
    """
    path = files[0]
    adjacency = [f"adj_{part}" for part in ("indices", "indptr", "shape")]
    attributes = [f"attr_{part}" for part in ("data", "indices", "indptr", "shape")]
    # Names of nodes and classes are stored as Python objects and stay unread.
    arrays = read_npz(path, (*adjacency, *attributes, "labels"))
    num_nodes = int(arrays.take("adj_shape", "integer", (2,))[0])
    columns = arrays.indices("adj_indices", num_nodes, (None,))
    counts = np.diff(arrays.take("adj_indptr", "integer", (num_nodes + 1,)))
    if counts.sum() != len(columns) or (counts < 0).any():
        arrays.fail(f"expected 'adj_indptr' ascending from 0 to {len(columns)}")
    edges = _ascending_pairs(np.repeat(np.arange(num_nodes), counts), columns, num_nodes)
    kept = np.flatnonzero(_largest_component(edges, num_nodes))
    local = np.full(num_nodes, -1)
    local[kept] = np.arange(len(kept))
    edges = local[edges]
    labels = arrays.take("labels", "integer", (num_nodes,))
    x = _select_rows(arrays, kept, num_nodes)
    return {
        "edge_index": edges[:, edges[0] >= 0].astype(np.int32),
        "num_nodes": np.array(len(kept)),
        "y": labels[kept].astype(np.int64),
        "orig_node_index": kept,
    } | x


def planetoid(files: list[Path]) -> dict[str, Array]:
    """Convert the eight files ind.NAME.* of kimiyoung/planetoid, with their public split.

    The files are pickles of Python 2. They are read by an unpickler that knows arrays, sparse matrices and
    dictionaries of lists, and nothing else.

    Raises:
        DataError: a file is damaged, holds anything else, or the files do not fit together.
    """
    held = {path.name.split(".", 2)[2]: path for path in files}
    allx, tx = (_dense(held[part]) for part in ("allx", "tx"))
    labels = [np.asarray(_unpickle(held[part])) for part in ("y", "ally", "ty")]
    graph = _unpickle(held["graph"])
    test = np.loadtxt(held["test.index"], dtype=np.int64, ndmin=1)
    if not isinstance(graph, dict) or len(test) != len(tx) or len(labels[1]) != len(allx) or test.min() < len(allx):
        raise DataError(f"{files[0].parent}: the files of {files[0].name.split('.')[1]} do not fit together")
    num_nodes = max(int(test.max()) + 1, len(graph))
    x = np.zeros((num_nodes, allx.shape[1]), dtype=np.float32)
    y = np.zeros(num_nodes, dtype=np.int64)
    x[: len(allx)], x[test] = allx, tx
    y[: len(allx)], y[test] = labels[1].argmax(1), labels[2].argmax(1)
    ends = np.array([(u, v) for u, neighbours in graph.items() for v in neighbours], dtype=np.int64).reshape(-1, 2)
    rows, columns = np.nonzero(x)
    arrays = {
        "edge_index": _ascending_pairs(ends[:, 0], ends[:, 1], num_nodes).astype(np.int32),
        "num_nodes": np.array(num_nodes),
        "y": y,
        "x_indptr": np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=num_nodes))]),
        "x_indices": columns.astype(np.int32),
        "x_data": x[rows, columns],
        "x_shape": np.array(x.shape),
        "train_idx": np.arange(len(labels[0])),
        "val_idx": np.arange(len(labels[0]), len(labels[0]) + 500),
        "test_idx": np.sort(test),
    }
    unlabelled = np.setdiff1d(np.arange(len(allx), num_nodes), test)
    return arrays | ({"unlabelled_nodes": unlabelled} if len(unlabelled) else {})


class _Csr:
    """What a pickled scipy.sparse.csr_matrix becomes: its attributes."""

    def __init__(self, *_: Any) -> None:
        """Pickle gives the attributes afterwards."""


class _ArrayUnpickler(pickle.Unpickler):
    """Builds arrays, CSR matrices and dictionaries of lists; any other name in the file is refused."""

    allowed: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("scipy.sparse.csr", "csr_matrix"): _Csr,
        ("collections", "defaultdict"): defaultdict,
        ("copy_reg", "_reconstructor"): copyreg._reconstructor,  # type: ignore[attr-defined]
        ("builtins", "object"): object,
        ("builtins", "list"): list,
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        key = module_name.replace("__builtin__", "builtins"), global_name
        if key not in self.allowed:
            raise pickle.UnpicklingError(f"'{module_name}.{global_name}' is not allowed")
        return self.allowed[key]


def _unpickle(path: Path) -> Any:
    try:
        with path.open("rb") as stream:
            return _ArrayUnpickler(stream, encoding="latin1", fix_imports=False).load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise DataError(f"{path}: damaged, or holds more than arrays ({error}); fetch it again") from error


def _dense(path: Path) -> Array:
    matrix = _unpickle(path)
    state = vars(matrix) if isinstance(matrix, _Csr) else {}
    shape = state.get("_shape", state.get("shape"))
    if shape is None or not {"data", "indices", "indptr"} <= set(state):
        raise DataError(f"{path}: expected a sparse matrix, got {type(matrix).__name__}")
    dense = np.zeros(shape, dtype=np.float32)
    dense[np.repeat(np.arange(shape[0]), np.diff(state["indptr"])), state["indices"]] = state["data"]
    return dense


def _ascending_pairs(u: Array, v: Array, num_nodes: int) -> Array:
    low, high = np.minimum(u, v).astype(np.int64), np.maximum(u, v).astype(np.int64)
    keys = np.unique((low * num_nodes + high)[low != high])
    return np.stack(np.divmod(keys, num_nodes))


def _largest_component(edges: Array, num_nodes: int) -> Array:
    # Every node takes the smallest id in reach, and then that id's, until nothing changes.
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


def _select_rows(arrays: ArrayFile, kept: Array, num_nodes: int) -> dict[str, Array]:
    offsets = arrays.take("attr_indptr", "integer", (num_nodes + 1,)).astype(np.int64)
    counts = np.diff(offsets)[kept]
    total = int(counts.sum())
    first = np.repeat(offsets[:-1][kept] - (np.cumsum(counts) - counts), counts)
    taken = first + np.arange(total)
    return {
        "x_indptr": np.concatenate([[0], np.cumsum(counts)]),
        "x_indices": arrays.take("attr_indices", "integer", (None,))[taken].astype(np.int32),
        "x_data": arrays.take("attr_data", "real", (None,))[taken].astype(np.float32),
        "x_shape": np.array([len(kept), int(arrays.take("attr_shape", "integer", (2,))[1])]),
    }
