"""Where the data sets are published, and fetching them: checksums kept, files written whole or not at all."""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from ..errors import DataError
from . import convert
from .files import Array, sha256

_TIMEOUT_S = 60
_BLOCK = 1 << 20
_OGB_FOLDERS = ("raw", "split", "mapping")


class Source(NamedTuple):
    """One published data set.

    Attributes:
        urls: its files.
        convert: makes the arrays of NAME.npz of them; None for OGB's archives, whose raw folder is kept as it is.
        counts: (nodes, undirected edges) that the converted graph must have.
        sha256: digests pinned for ``urls``, in their order; empty = the first download's are recorded and kept to.
    """

    urls: tuple[str, ...]
    convert: Callable[[list[Path]], dict[str, Array]] | None = None
    counts: tuple[int, int] | None = None
    sha256: tuple[str, ...] = ()


def _benchmark(file: str, nodes: int, edges: int) -> Source:
    url = f"https://github.com/shchur/gnn-benchmark/raw/master/data/npz/{file}.npz"
    return Source((url,), convert.gnn_benchmark, (nodes, edges))


def _planetoid(name: str, nodes: int, edges: int) -> Source:
    parts = ("x", "y", "tx", "ty", "allx", "ally", "graph", "test.index")
    root = "https://github.com/kimiyoung/planetoid/raw/master/data"
    return Source(tuple(f"{root}/ind.{name}.{part}" for part in parts), convert.planetoid, (nodes, edges))


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


def get(name: str, root: Path) -> Path:
    """Fetch the data set ``name`` into ``root`` and make it ready for :func:`gmoe_ext.data.load`.

    The published files stay in ROOT/downloads beside their checksums (SHA256SUMS); a later download must equal them.

    Returns:
        What was made: ROOT/NAME.npz, or ROOT/NAME with OGB's raw folder.

    Raises:
        DataError: no such source, the network fails, a checksum or the published counts do not match.
    """
    if name not in SOURCES:
        raise DataError(f"data '{name}' has no official source here.\n  known: {', '.join(SOURCES)}")
    source = SOURCES[name]
    files = [_download(url, root / "downloads", pin) for url, pin in _pinned(source)]
    if source.convert is None:
        return _unpack(files[0], root / name)
    arrays = source.convert(files)
    counts = int(arrays["num_nodes"]), arrays["edge_index"].shape[1]
    if source.counts is not None and counts != source.counts:
        raise DataError(
            f"data '{name}': got (nodes, edges) {counts}, published are {source.counts}; the source changed"
        )
    target = root / f"{name}.npz"
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    _write(target, content.getvalue())
    return target


def _pinned(source: Source) -> list[tuple[str, str | None]]:
    pins = source.sha256 or (None,) * len(source.urls)
    return list(zip(source.urls, pins, strict=True))


def _download(url: str, folder: Path, pin: str | None) -> Path:
    path = folder / url.rsplit("/", 1)[1]
    recorded = _recorded(folder)
    expected = pin or recorded.get(path.name)
    if path.is_file() and expected is not None and sha256(path) == expected:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    print(f"fetch      {url}", file=sys.stderr)
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer, part.open("wb") as stream:
            shutil.copyfileobj(answer, stream, _BLOCK)
    except (urllib.error.URLError, TimeoutError, ConnectionError, OSError) as error:
        part.unlink(missing_ok=True)
        raise DataError(f"cannot fetch {url} ({error}).\n  mend: try again, or save it by hand as {path}") from error
    digest = sha256(part)
    if expected is not None and digest != expected:
        part.unlink()
        raise DataError(
            f"{url}: SHA-256 is {digest}, expected {expected}.\n"
            f"  mend: if the publisher changed the file on purpose, remove its line from {folder / 'SHA256SUMS'}"
        )
    os.replace(part, path)
    recorded[path.name] = digest
    lines = "".join(f"{value}  {file}\n" for file, value in sorted(recorded.items()))
    _write(folder / "SHA256SUMS", lines.encode())
    return path


def _recorded(folder: Path) -> dict[str, str]:
    path = folder / "SHA256SUMS"
    if not path.is_file():
        return {}
    pairs = (line.split(maxsplit=1) for line in path.read_text().splitlines() if line.strip())
    return {file.strip(): digest for digest, file in pairs}


def _unpack(archive: Path, target: Path) -> Path:
    if target.exists():
        raise DataError(f"{target} exists; remove it to unpack {archive} again")
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        with zipfile.ZipFile(archive) as content:
            for member in content.infolist():
                inside = PurePosixPath(member.filename).parts[1:]
                # OGB's archives hold one folder; only its known parts are taken, and no way leads out of `staging`.
                if member.is_dir() or not inside or inside[0] not in _OGB_FOLDERS or ".." in inside:
                    continue
                path = staging.joinpath(*inside)
                path.parent.mkdir(parents=True, exist_ok=True)
                with content.open(member) as stream, path.open("wb") as out:
                    shutil.copyfileobj(stream, out, _BLOCK)
        if not (staging / "raw").is_dir():
            raise DataError(f"{archive}: expected a folder 'raw' in the archive")
        os.replace(staging, target)
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise DataError(f"{archive}: cannot unpack ({error}); remove it and fetch it again") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)
