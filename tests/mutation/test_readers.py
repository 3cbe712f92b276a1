"""Every reader is known here, is fed damaged files and refuses pickles."""

from __future__ import annotations

import ast
import io
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from gmoe_ext.errors import DataError, GmoeError
from tests.mutation.targets import TARGETS
from tests.mutation.worker import Bench, Finding, Input, Progress, corpus, forked, limited, outcome

PACKAGE = Path(__file__).resolve().parents[2] / "gmoe_ext"

# Calls that read a file. A module with one of them names the targets that feed it, or says why it needs none.
READS = re.compile(
    r"\b(np|numpy)\.(load|loadtxt|genfromtxt|fromfile|memmap)\b|NpzFile|\bread_array|torch\.load\b|\bsafe_open\b|"
    r"load_file|npickler|pickle\.loads?\b|\bjson\.loads?\b|yaml\.\w*load|tomllib|gzip\.|zipfile\.ZipFile|ZipFile\(|"
    r"ParquetFile|read_table|\.read_text\(|\.read_bytes\(|\.open\(|\bopen\(|urlopen|mmap\.mmap|csv\.reader|"
    r"library\.PackedStudent"
)
READERS: dict[str, tuple[str, ...] | str] = {
    "__init__": "the version in pyproject.toml of the source tree",
    "atomic_write": "reopens what was just written",
    "checkpoint": ("checkpoint", "resume"),
    "collect_env": "/proc/cpuinfo",
    "data.arrays": ("node_npz", "link_npz", "split_npz", "molecule_npz", "ogb_nodes", "ogb_molecules", "export_rows"),
    "data.convert": ("planetoid", "gnn_benchmark"),
    "data.pickled": ("ogb_links", "planetoid"),
    "data.sources": ("ogb_archive",),
    "export.__main__": "names in a text file that the command line gives",
    "export.graphs": "ONNX and pt2 files, read by ONNX Runtime and torch.export; pickles: tests/export/test_graphs.py",
    "export.pack": ("student",),
    "predict.csv_rows": ("rows_csv",),
    "predict.journal": ("journal",),
    "predict.parquet": ("rows_parquet",),
    "predict.rows": ("rows_npy", "rows_npz"),
    "report": "metrics.jsonl, a JSON object a line: tests/train/test_report.py",
    "runtime.student": ("student",),
    "train.directory": "the lock, whose text is only shown",
    "train.recipes": "the recipes in the package; a user's file is read by train.parse",
    "train.parse": ("settings_yaml",),
    "train.report": ("resume",),
}


def readers() -> set[str]:
    """Modules of the package that read something."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        if any(READS.search(f"{ast.unparse(call.func)}(") and not _writes(call) for call in calls):
            found.add(path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."))
    return found


def _writes(call: ast.Call) -> bool:
    """Whether an open() is for writing alone."""
    modes = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    return any(isinstance(mode, ast.Constant) and re.fullmatch(r"[wxa]b?", str(mode.value)) for mode in modes)


def test_every_module_that_reads_a_file_is_fed_damaged_ones() -> None:
    known = READERS.keys() - {"train.parse"}  # jsonargparse opens its files
    assert readers() == known, "name the targets of a new reader in READERS, or why it needs none"
    named = {target for targets in READERS.values() if isinstance(targets, tuple) for target in targets}
    assert named == TARGETS.keys() - {"http_request"}


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.command = f"touch '{marker}'"

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def object_array_over_bytes(core: bytes) -> bytes:
    """A pickle of an array of pointers whose addresses are bytes of the file."""
    text = b"X" + struct.pack("<I", 1) + b"O" + b"\x85R"
    shape, state = b"K\x02K\x02\x86", b"C\x20" + b"\x10AAAAAA\0" * 4
    if core == b"ndarray":
        return b"\x80\x02cnumpy\nndarray\n" + shape + b"cnumpy\ndtype\n" + text + state + b"\x87R."
    begin = b"\x80\x03c" + core + b".multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    return begin + b"(K\x01" + shape + b"cnumpy\ndtype\n" + text + b"\x89" + state + b"tb."


def pickles(marker: Path) -> dict[str, bytes]:
    """Hostile content: commands to run in every protocol, alone and in an archive, and arrays of pointers."""
    payload = Payload(marker)
    made = {f"protocol {protocol}": pickle.dumps(payload, protocol) for protocol in range(6)}
    made["in a list"] = pickle.dumps([1, {"edge": payload}], 2)
    made["object array"] = pickle.dumps(np.array([payload], dtype=object), 2)
    for core in (b"ndarray", b"numpy.core", b"numpy._core"):
        made[f"pointers, {core.decode()}"] = object_array_over_bytes(core)
    for kind, value in (("torch", payload), ("torch, in a dictionary", {"edge": payload})):
        out = io.BytesIO()
        torch.save(value, out)
        made[kind] = out.getvalue()
    out = io.BytesIO()
    torch.save(payload, out, _use_new_zipfile_serialization=False)
    made["torch, before 1.6"] = out.getvalue()
    out = io.BytesIO()
    np.save(out, np.array([payload], dtype=object), allow_pickle=True)
    made["npy"] = out.getvalue()
    return made


def in_archive(sound: bytes, hostile: bytes) -> Iterator[bytes]:
    """The archive with each of its members replaced."""
    with zipfile.ZipFile(io.BytesIO(sound)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    for replaced in members:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as file:
            for name, content in members.items():
                file.writestr(name, hostile if name == replaced else content)
        yield out.getvalue()


def hostile_inputs(bench: Bench, marker: Path) -> Iterator[Input]:
    """Every file of a target as every pickle; an archive also with every member as one."""
    for name, sound in bench.sound.items():
        for kind, content in pickles(marker).items():
            yield Input(name, content)
            if sound.startswith(b"PK") and kind in ("npy", "protocol 2", "object array", "pointers, numpy.core"):
                yield from (Input(name, archive) for archive in in_archive(sound, content))


def feed_all(name: str, folder: Path, inputs: Callable[[Bench], Iterator[Input]], ran: Path | None = None) -> None:
    """Feed inputs in a process of their own; fail at the first that is neither read nor refused, or runs a command."""
    bench, progress, wrong = Bench(name, folder / "bench"), Progress(), folder / "wrong"

    def feed() -> None:
        bench.feed(None)
        with limited():
            for index, given in enumerate(inputs(bench)):
                progress.set(index, 0, 0)
                result = outcome(bench, given)
                if isinstance(result, Finding) or (ran is not None and ran.exists()):
                    wrong.write_text(f"input {index}, {given.file}, ran: {ran is not None and ran.exists()}: {result}")
                    return

    death = forked(feed, progress, folder / "log")
    assert death is None, f"input {progress.get()[0]}: {death}"
    assert not wrong.exists(), wrong.read_text()


@pytest.mark.parametrize("name", TARGETS)
def test_no_reader_runs_or_follows_a_pickle(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    assert pickle.loads(pickles(marker)["protocol 2"]) == 0 and marker.exists(), "the payload is none"
    marker.unlink()
    feed_all(name, tmp_path, lambda bench: hostile_inputs(bench, marker), marker)
    assert not marker.exists()


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    feed_all(name, tmp_path, lambda bench: (bench.draw(1, index) for index in range(10 * bench.target.share)))


@pytest.mark.parametrize("name", sorted({name for name, _, _ in corpus()}))
def test_what_once_did_harm_is_read_or_refused(name: str, tmp_path: Path) -> None:
    feed_all(name, tmp_path, lambda _: (given for target, _, given in corpus() if target == name))


def test_a_message_is_safe_to_print() -> None:
    assert str(DataError("x\x1b[1m\r\u202e\n\t\u00e9")) == "x\\x1b[1m\\r\\u202e\n\t\u00e9"
    assert len(str(GmoeError("a" * 10**6))) < 2100
