"""Fetch published data sets: where they are, and their checksums."""

from __future__ import annotations

import re
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from ..atomic_write import atomic_write
from ..errors import DataError
from .arrays import Array, open_zip, sha256
from .convert import gnn_benchmark, planetoid

_TIMEOUT_S = 60
_BLOCK = 1 << 20
_OGB_FOLDERS = ("raw", "split", "mapping")


class Source(NamedTuple):
    """One published data set.

    Attributes:
        urls: its files.
        convert: turns the files into the arrays of NAME.npz; None for OGB's archives, whose raw folder is kept.
        counts: (nodes, undirected edges) that the converted graph must have.
        sha256: pinned digests of ``urls``, in order; if empty, ROOT/downloads/SHA256SUMS must match, and a file
            that it does not list is reported with its digest and added.
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
    if expected is None:
        print(
            f"unverified {path.name}: no SHA-256 is pinned for it; this copy's is {digest}, which is now recorded in\n"
            f"           {folder / 'SHA256SUMS'} and must match from now on. Compare it with a copy you trust, or\n"
            "           write the line of that copy there before you fetch.",
            file=sys.stderr,
        )
    recorded[path.name] = digest
    with atomic_write(folder / "SHA256SUMS") as draft:
        draft.write_text("".join(f"{value}  {file}\n" for file, value in sorted(recorded.items())))
    return path


def _recorded(folder: Path) -> dict[str, str]:
    path = folder / "SHA256SUMS"
    if not path.is_file():
        return {}
    lines = [line.split() for line in path.read_text("ascii", "replace").splitlines() if line.strip()]
    for line in lines:
        if len(line) != 2 or not re.fullmatch("[0-9a-f]{64}", line[0]):
            raise DataError(
                f"{path}: expected 'SHA256  FILE' in every line, got {' '.join(line)!r}\n  fix: mend that line"
            )
    return {file: digest for digest, file in lines}


def _unpack(archive: Path, target: Path) -> Path:
    if target.exists():
        raise DataError(f"{target} exists\n  fix: remove it to unpack {archive} again")
    with open_zip(archive) as content, atomic_write(target) as draft:
        for member in content.infolist():
            inside = PurePosixPath(member.filename).parts[1:]
            # OGB's archives hold one folder. Only its known parts are taken, and no path may lead out of `draft`.
            if not inside or member.is_dir() or inside[0] not in _OGB_FOLDERS or ".." in inside:
                continue
            path = draft.joinpath(*inside)
            path.parent.mkdir(parents=True, exist_ok=True)
            with content.open(member) as stream, path.open("wb") as out:
                shutil.copyfileobj(stream, out, _BLOCK)
        if not (draft / "raw").is_dir():
            raise DataError(f"{archive}: expected a folder 'raw' in the archive")
    return target


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
