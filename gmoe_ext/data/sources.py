"""Fetch published data sets: where they are, their checksums, and their conversion to the arrays of NAME.npz."""

from __future__ import annotations

import copyreg
import pickle
import shutil
import sys
import urllib.error
import urllib.request
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..atomic_write import atomic_write
from ..errors import DataError
from .arrays import Array, ascending_pairs, read_npz, sha256

_TIMEOUT_S = 60
_BLOCK = 1 << 20
_OGB_FOLDERS = ("raw", "split", "mapping")


class Source(NamedTuple):
    """One published data set.

    Attributes:
        urls: its files.
        convert: turns the files into the arrays of NAME.npz; None for OGB's archives, whose raw folder is kept.
        counts: (nodes, undirected edges) that the converted graph must have.
        sha256: pinned digests of ``urls``, in order; if empty, those of the first download are recorded and must recur.
    """

    urls: tuple[str, ...]
    convert: Callable[[list[Path]], dict[str, Array]] | None = None
    counts: tuple[int, int] | None = None
    sha256: tuple[str, ...] = ()


def get(name: str, root: Path) -> Path:
    """Fetch the data set ``name`` into ``root``, ready for :func:`gmoe_ext.data.load`.

    The published files stay in ROOT/downloads beside their checksums (SHA256SUMS), which later downloads must match.

    Returns:
        The result: ROOT/NAME.npz, or ROOT/NAME with OGB's raw folder.

    Raises:
        DataError: there is no such source, the network fails, or a checksum or the published counts do not match.
    """
    if name not in SOURCES:
        raise DataError(f"data '{name}' has no official source here.\n  known: {', '.join(SOURCES)}")
    source = SOURCES[name]
    pins = source.sha256 or (None,) * len(source.urls)
    files = [_download(url, root / "downloads", pin) for url, pin in zip(source.urls, pins, strict=True)]
    if source.convert is None:
        return _unpack(files[0], root / name)
    arrays = source.convert(files)
    counts = int(arrays["num_nodes"]), arrays["edge_index"].shape[1]
    if source.counts is not None and counts != source.counts:
        raise DataError(
            f"data '{name}': got (nodes, edges) {counts}, published are {source.counts}; the source has changed"
        )
    target = root / f"{name}.npz"
    with atomic_write(target) as draft, draft.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return target


def _download(url: str, folder: Path, pin: str | None) -> Path:
    path = folder / url.rsplit("/", 1)[1]
    recorded = _recorded(folder)
    expected = pin or recorded.get(path.name)
    if path.is_file() and expected is not None and sha256(path) == expected:
        return path
    print(f"fetch      {url}", file=sys.stderr)
    with atomic_write(path) as draft:
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer, draft.open("wb") as stream:
                shutil.copyfileobj(answer, stream, _BLOCK)
        except (urllib.error.URLError, TimeoutError, ConnectionError, OSError) as error:
            raise DataError(f"cannot fetch {url} ({error}).\n  fix: try again, or save it as {path}") from error
        digest = sha256(draft)
        if expected is not None and digest != expected:
            raise DataError(
                f"{url}: SHA-256 is {digest}, expected {expected}.\n"
                f"  fix: if the publisher changed the file on purpose, remove its line from {folder / 'SHA256SUMS'}"
            )
    recorded[path.name] = digest
    with atomic_write(folder / "SHA256SUMS") as draft:
        draft.write_text("".join(f"{value}  {file}\n" for file, value in sorted(recorded.items())))
    return path


def _recorded(folder: Path) -> dict[str, str]:
    path = folder / "SHA256SUMS"
    if not path.is_file():
        return {}
    pairs = (line.split(maxsplit=1) for line in path.read_text().splitlines() if line.strip())
    return {file.strip(): digest for digest, file in pairs}


def _unpack(archive: Path, target: Path) -> Path:
    if target.exists():
        raise DataError(f"{target} exists\n  fix: remove it to unpack {archive} again")
    try:
        with atomic_write(target) as draft, zipfile.ZipFile(archive) as content:
            for member in content.infolist():
                inside = PurePosixPath(member.filename).parts[1:]
                # OGB's archives hold one folder. Only its known parts are taken, and no path may lead out of `draft`.
                if member.is_dir() or not inside or inside[0] not in _OGB_FOLDERS or ".." in inside:
                    continue
                path = draft.joinpath(*inside)
                path.parent.mkdir(parents=True, exist_ok=True)
                with content.open(member) as stream, path.open("wb") as out:
                    shutil.copyfileobj(stream, out, _BLOCK)
            if not (draft / "raw").is_dir():
                raise DataError(f"{archive}: expected a folder 'raw' in the archive")
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise DataError(f"{archive}: cannot unpack ({error})\n  fix: remove it and fetch it again") from error
    return target


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
    values = arrays.take("attr_data", "real", (None,))
    columns = arrays.take("attr_indices", "integer", (len(values),))
    rows = local[arrays.csr_rows("attr_indptr", num_nodes, len(values))]
    taken = rows >= 0
    num_features = int(arrays.take("attr_shape", "integer", (2,))[1])
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
        "edge_index": ascending_pairs(ends.T, num_nodes).astype(np.int32),
        "num_nodes": np.array(num_nodes),
        "y": y,
        **_csr(rows, columns, x[rows, columns], x.shape),
        "train_idx": np.arange(len(labels[0])),
        "val_idx": np.arange(len(labels[0]), len(labels[0]) + 500),
        "test_idx": np.sort(test),
    }
    unlabelled = np.setdiff1d(np.arange(len(allx), num_nodes), test)
    return arrays | ({"unlabelled_nodes": unlabelled} if len(unlabelled) else {})


class _Csr:
    """Stands in for a pickled scipy.sparse.csr_matrix and holds its attributes."""

    def __init__(self, *_: Any) -> None:
        """Accept any arguments; pickle sets the attributes afterwards."""


class _ArrayUnpickler(pickle.Unpickler):
    """Builds arrays, CSR matrices and dictionaries of lists, and refuses any other name in the file."""

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


def _benchmark(file: str, nodes: int, edges: int) -> Source:
    url = f"https://github.com/shchur/gnn-benchmark/raw/master/data/npz/{file}.npz"
    return Source((url,), gnn_benchmark, (nodes, edges))


def _planetoid(name: str, nodes: int, edges: int) -> Source:
    parts = ("x", "y", "tx", "ty", "allx", "ally", "graph", "test.index")
    root = "https://github.com/kimiyoung/planetoid/raw/master/data"
    return Source(tuple(f"{root}/ind.{name}.{part}" for part in parts), planetoid, (nodes, edges))


def _ogb(path: str) -> Source:
    return Source((f"https://snap.stanford.edu/ogb/data/{path}.zip",))


SOURCES: dict[str, Source] = {
    "cora_cpf": _benchmark("cora", 2485, 5069),
    "citeseer_cpf": _benchmark("citeseer", 2110, 3668),
    "amazon_computers": _benchmark("amazon_electronics_computers", 13381, 245778),
    "amazon_photo": _benchmark("amazon_electronics_photo", 7487, 119043),
    "coauthor_cs": _benchmark("ms_academic_cs", 18333, 81894),
    "coauthor_physics": _benchmark("ms_academic_phy", 34493, 247962),
    "cora_planetoid": _planetoid("cora", 2708, 5278),
    "citeseer_planetoid": _planetoid("citeseer", 3327, 4552),
    "pubmed_planetoid": _planetoid("pubmed", 19717, 44324),
    "ogbn_arxiv": _ogb("nodeproppred/arxiv"),
    "ogbn_products": _ogb("nodeproppred/products"),
    "ogbn_proteins": _ogb("nodeproppred/proteins"),
    "ogbl_ddi": _ogb("linkproppred/ddi"),
    "ogbl_ppa": _ogb("linkproppred/ppassoc"),
    "molbbbp": _ogb("graphproppred/csv_mol_download/bbbp"),
    "molesol": _ogb("graphproppred/csv_mol_download/esol"),
    "molfreesolv": _ogb("graphproppred/csv_mol_download/freesolv"),
    "molhiv": _ogb("graphproppred/csv_mol_download/hiv"),
    "moltox21": _ogb("graphproppred/csv_mol_download/tox21"),
    "moltoxcast": _ogb("graphproppred/csv_mol_download/toxcast"),
}
