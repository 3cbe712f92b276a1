"""What is damaged: for every kind of file that the package reads, small sound files and a call that reads them."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from gmoe_ext import checkpoint, data, models
from gmoe_ext.data import sources
from gmoe_ext.errors import DataError
from gmoe_ext.export.compare import read_rows
from gmoe_ext.export.pack import pack, unpack
from gmoe_ext.export.run import load_student
from gmoe_ext.predict import score
from gmoe_ext.runtime import PackedStudent, StudentClassifier
from gmoe_ext.terminal import Progress
from gmoe_ext.train.config import Config, TrainConfig
from gmoe_ext.train.fit_state import Task
from gmoe_ext.train.loop import fit
from gmoe_ext.train.parse import dump, parse
from gmoe_ext.train.run import Run
from tests.data import make
from tests.data.test_sources import write_benchmark_file, write_planetoid
from tests.mutation.damage import Rewrite, tree
from tests.train.files import write_molecules, write_nodes

COLUMNS, POSITIONS = 6, 4


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
        make: writes sound files into a folder.
        feed: reads them, with everything a caller would do next; files it writes go to the second folder.
        damaged: the files to damage, as a pattern.
        rewrites: further ways to damage one of these files.
        share: inputs relative to other targets; slow ones get fewer.
    """

    make: Callable[[Path], object]
    feed: Callable[[Path, Path], object]
    damaged: str = "**/*"
    rewrites: tuple[Rewrite, ...] = ()
    share: int = 8


def _use_nodes(folder: Path, _: Path, **options: Any) -> None:
    nodes = data.load("d", folder, **options)
    nodes.graph.gcn_norm().transpose()
    nodes.row_normalized().summary()
    if len(nodes.test_idx):
        nodes.inductive(0)


def _use_molecules(folder: Path, _: Path) -> None:
    molecules = data.load("d", folder)
    molecules.batch(range(min(8, molecules.num_graphs)), two_hop=True)
    molecules.summary()


def _use_links(folder: Path, _: Path) -> None:
    data.load("d", folder).summary()


def _make_nodes(folder: Path) -> None:
    write_nodes(folder, "d")


def _make_split(folder: Path) -> None:
    make.write_npz(folder, "d", make.node_arrays())
    make.write_npz(folder, "d_split", make.split_arrays(40))


def _make_links(folder: Path) -> None:
    arrays = make.node_arrays()
    edges = arrays["edge_index"]
    parts = {"train_edge": edges, "valid_edge": edges[:, :9], "test_edge": edges[:, 9:19]}
    parts |= {"valid_edge_neg": edges[:, :5], "test_edge_neg": edges[:, 5:9]}
    make.write_npz(folder, "d", {**{k: v for k, v in arrays.items() if k.startswith(("x_", "num"))}, **parts})


def _make_planetoid(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        write_planetoid(folder, patch)


def _make_archive(folder: Path) -> None:
    import zipfile

    make.write_ogb_nodes(folder / "made", "d")
    with zipfile.ZipFile(folder / "d.zip", "w") as file:
        for path in sorted((folder / "made").rglob("*.csv.gz")):
            file.write(path, path.relative_to(folder / "made"))
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  other.npz\n")


def _fetch(folder: Path, scratch: Path) -> None:
    """Fetch what lies in the folder as if it were published there."""
    (scratch / "downloads").mkdir()
    (scratch / "downloads" / "SHA256SUMS").write_bytes((folder / "SHA256SUMS").read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sources.SOURCES, "d", sources.Source(((folder / "d.zip").as_uri(),)))
        sources.get("d", scratch)
    data.load("d", scratch)


class _Fit(Task):
    """A fit of a small student, as a run with --student.model rbm has it."""

    phase, metric = "rbm", "accuracy"

    def __init__(self) -> None:
        options = dict(in_dim=COLUMNS + POSITIONS, hidden_dim=5, out_dim=3, num_layers=2, num_experts=2, k=1)
        self.model = models.build("rbm", norm="batch", **options)
        self.optimizer = torch.optim.Adam(self.model.parameters())

    def batches(self, epoch: int) -> list[torch.Tensor]:
        return [torch.ones(3, COLUMNS + POSITIONS)]

    def losses(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.model(batch).logits.square().mean()}

    def evaluate(self) -> dict[str, float]:
        return {"val": 0.5, "test": 0.5}


def _run(folder: Path) -> Run:
    return Run(Config(train=TrainConfig(epochs=3)), folder, Progress(quiet=True))


def _make_run(folder: Path) -> None:
    run, task = _run(folder), _Fit()
    run.begin(task.phase)
    fit(task, TrainConfig(epochs=1), run)
    scalars: dict[str, Any] = {"class_names": ["a", "b", "c"]}
    checkpoint.save(folder / "checkpoints" / "inputs.safetensors", {"positions": torch.ones(7, POSITIONS)}, scalars)


def _continue_run(folder: Path, scratch: Path) -> None:
    shutil.copytree(folder, scratch, dirs_exist_ok=True)
    run, task = _run(scratch), _Fit()
    run.begin(task.phase)
    fit(task, TrainConfig(epochs=2), run)


def resealed(content: bytes, random: Random) -> bytes:
    """Change the tensors or the scalars of a checkpoint and write it anew, with the right checksum."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "c"
        path.write_bytes(content)
        try:
            tensors, scalars = checkpoint.load(path)
        except (checkpoint.CheckpointError, SafetensorError, ValueError):
            return content[: random.randrange(len(content) + 1)]
        if random.random() < 0.6:
            scalars = tree(scalars, random)
        else:
            tensors = _other_tensors(load(content), random)
        checkpoint.save(path, tensors, scalars)
        return path.read_bytes()


def _other_tensors(tensors: dict[str, torch.Tensor], random: Random) -> dict[str, torch.Tensor]:
    name = random.choice(list(tensors))
    value = tensors.pop(name)
    kind = random.randrange(6)
    if kind == 0:
        tensors[random.choice(("x", "model/x", "optimizer/x.y", "optimizer/99.exp_avg", "rng/x", ""))] = value
    elif kind == 1:
        tensors[name] = value.reshape(-1)[: random.randrange(value.numel() + 1)].clone()
    elif kind == 2:
        tensors[name] = torch.full_like(value, random.choice((0, 1, 2)))
    elif kind == 3:
        tensors[name] = value.to(random.choice((torch.float64, torch.int64, torch.bool, torch.bfloat16, torch.uint8)))
    elif kind == 4 and value.is_floating_point():
        tensors[name] = value * random.choice((float("nan"), float("inf"), -1e38, 1e-38))
    return tensors


def _make_student(folder: Path) -> None:
    torch.manual_seed(0)
    options = dict(in_dim=COLUMNS + POSITIONS, hidden_dim=12, out_dim=5, num_layers=2, num_experts=3, k=2)
    names = ["plain", "with, comma", 'a "quote"', "\u00e9", ""]
    model = models.build("rbm", **options).eval()
    pack(model, folder / "s.safetensors", positions=torch.randn(20, POSITIONS), class_names=names)


def _use_student(folder: Path, _: Path) -> None:
    path = folder / "s.safetensors"
    student = PackedStudent.load(path)
    unpack(path)
    StudentClassifier(path)
    features = student.info()["features"]
    x, nodes = np.ones((9, features["columns"]), np.float32), np.full(9, -1)
    for count in (1, 9):
        student.predict(x[:count], nodes[:count] if features["position_columns"] else None)


def _rows() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.standard_normal((30, COLUMNS), np.float32), random.integers(-1, 20, 30)


def _make_npy(folder: Path) -> None:
    _make_student(folder)
    np.save(folder / "rows.npy", np.concatenate([_rows()[0], np.zeros((30, POSITIONS), np.float32)], 1))


def _make_npz(folder: Path) -> None:
    _make_student(folder)
    np.savez(folder / "rows.npz", x=_rows()[0], nodes=_rows()[1])


def _make_csv(folder: Path) -> None:
    _make_student(folder)
    x, nodes = _rows()
    lines = [",".join([*(f"f{i}" for i in range(COLUMNS)), "node"])]
    lines += [",".join([*(f"{value:.6g}" for value in row), str(node)]) for row, node in zip(x, nodes, strict=True)]
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")


def _make_parquet(folder: Path) -> None:
    _make_student(folder)
    x, nodes = _rows()
    _write_table(folder / "rows.parquet", {f"f{i}": column for i, column in enumerate(x.T)} | {"node": nodes})


def _write_table(path: Path, columns: dict[str, Any]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(list(columns.values()), names=list(columns)), path, row_group_size=13)


def other_table(_: bytes, random: Random) -> bytes:
    """Write a sound Parquet file of columns that the reader may not expect."""
    import pyarrow

    kinds = ("uint8", "uint64", "int8", "int64", "float16", "float32", "float64", "bool", "string", "binary", "date32",
             "decimal", "list", "dictionary", "null", "struct", "timestamp", "large_list", "fixed_list")  # fmt: skip
    columns = []
    for index in range(random.choice((1, 2, COLUMNS, COLUMNS + 1))):
        kind = random.choice(kinds) if random.random() < 0.3 else "float32"
        name = f"f{index}" if random.random() < 0.9 else random.choice(("f0", "node", "", "\x1b", "a.b"))
        columns.append((name, _column(kind, random)))
    if random.random() < 0.7:
        columns.append((random.choice(("node", "nodes")), _column(random.choice(("int64", *kinds)), random)))
    table = pyarrow.table([column for _, column in columns], names=[name for name, _ in columns])
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        pyarrow.parquet.write_table(table, file.name, row_group_size=random.choice((1, 4, 9)), compression="NONE")
        return Path(file.name).read_bytes()


def _column(kind: str, random: Random) -> Any:
    import pyarrow as pa

    odd: dict[str, tuple[Any, list[Any]]] = {
        "uint8": (pa.uint8(), [0, 255]), "uint64": (pa.uint64(), [0, 2**64 - 1, 2**63]), "int8": (pa.int8(), [-128, 1]),
        "int64": (pa.int64(), [-1, 0, 19, 20, 2**63 - 1]), "float16": (pa.float16(), [np.float16(1)]),
        "float32": (pa.float32(), [0.5, 1e38]), "float64": (pa.float64(), [1e300, float("nan")]),
        "bool": (pa.bool_(), [True]), "string": (pa.string(), ["1", "x"]), "binary": (pa.binary(), [b"\xff"]),
        "date32": (pa.date32(), [1]), "decimal": (pa.decimal128(9, 2), [1]), "null": (pa.null(), [None]),
        "list": (pa.list_(pa.float32()), [[], [1.0], [1.0] * 10, [None] * 10]),
        "large_list": (pa.large_list(pa.float64()), [[2.0] * 10]),
        "fixed_list": (pa.list_(pa.float32(), 10), [[1.0] * 10, [None] * 10]),
        "dictionary": (pa.dictionary(pa.int8(), pa.string()), ["a"]),
        "struct": (pa.struct([("a", pa.int32())]), [{"a": 1}]), "timestamp": (pa.timestamp("ns"), [2**62]),
    }  # fmt: skip
    dtype, values = odd[kind]
    nulls = [None] if random.random() < 0.3 else []
    return pa.array([random.choice(values + nulls) for _ in range(9)], dtype)


def _score(name: str, output: str = "answers.csv") -> Callable[[Path, Path], object]:
    return lambda folder, scratch: score(folder / "s.safetensors", folder / name, scratch / output)


def _make_journal(folder: Path) -> None:
    _make_npz(folder)
    with pytest.raises(InterruptedError):
        score(folder / "s.safetensors", folder / "rows.npz", folder / "answers.csv", on_rows=_stop)


def _stop(*_: object) -> None:
    raise InterruptedError


def _continue_journal(folder: Path, scratch: Path) -> None:
    for path in folder.glob("answers.csv.partial*"):
        (scratch / path.name).write_bytes(path.read_bytes())
    score(folder / "s.safetensors", folder / "rows.npz", scratch / "answers.csv")


@cache
def _program() -> ModuleType:
    spec = spec_from_file_location("serve_http", Path(__file__).resolve().parents[2] / "examples" / "serve_http.py")
    assert spec is not None and spec.loader is not None
    sys.modules["serve_http"] = module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _make_request(folder: Path) -> None:
    _make_student(folder)
    x, nodes = _rows()
    (folder / "body.json").write_text(json.dumps({"x": x[:3].round(3).tolist(), "nodes": nodes[:3].tolist(), "top": 2}))


def _send_request(folder: Path, _: Path) -> None:
    """Send the body to the HTTP example as a server would, without a network."""
    app = _program().build(PackedStudent.load(folder / "s.safetensors"))
    status, answer = asyncio.run(_answer(app, (folder / "body.json").read_bytes()))
    json.loads(answer, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    if status == 200:
        return
    assert 400 <= status < 500, f"status {status}"
    raise DataError(answer.decode())


async def _answer(app: Any, body: bytes) -> tuple[int, bytes]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": "/predict",
        "raw_path": b"/predict", "query_string": b"", "root_path": "", "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80), "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip
    async with app.router.lifespan_context(app):
        await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


TARGETS: dict[str, Target] = {
    "node_npz": Target(_make_nodes, _use_nodes),
    "molecule_npz": Target(lambda folder: write_molecules(folder, "d"), _use_molecules, share=4),
    "link_npz": Target(_make_links, _use_links),
    "split_npz": Target(_make_split, _use_nodes, "d_split.npz"),
    "ogb_nodes": Target(lambda folder: make.write_ogb_nodes(folder, "d"), _use_nodes),
    "ogb_molecules": Target(lambda folder: make.write_ogb_molecules(folder, "d"), _use_molecules, share=4),
    "ogb_links": Target(lambda folder: make.write_ogb_links(folder, "d"), _use_links),
    "ogb_archive": Target(_make_archive, _fetch, "[dS]*[pS]", share=2),
    "planetoid": Target(_make_planetoid, lambda folder, _: sources.planetoid(sorted(folder.glob("ind.*")))),
    "gnn_benchmark": Target(
        lambda folder: write_benchmark_file(folder / "raw.npz"),
        lambda folder, _: sources.gnn_benchmark([folder / "raw.npz"]),
    ),
    "checkpoint": Target(_make_run, lambda folder, _: load_student(folder), "checkpoints/*", (resealed,)),
    "resume": Target(_make_run, _continue_run, "checkpoints/rbm*", (resealed,), share=2),
    "settings_yaml": Target(
        lambda folder: (folder / "c.yaml").write_text(dump(parse([]))),
        lambda folder, _: parse(["--config", str(folder / "c.yaml")]),
        share=1,
    ),
    "student": Target(_make_student, _use_student),
    "rows_npy": Target(_make_npy, _score("rows.npy", "answers.npy"), "rows.npy"),
    "rows_npz": Target(_make_npz, _score("rows.npz"), "rows.npz"),
    "rows_csv": Target(_make_csv, _score("rows.csv"), "rows.csv"),
    "rows_parquet": Target(_make_parquet, _score("rows.parquet"), "rows.parquet", (other_table,), share=4),
    "journal": Target(_make_journal, _continue_journal, "answers*", share=4),
    "http_request": Target(_make_request, _send_request, "body.json", share=4),
    "export_rows": Target(_make_npz, lambda folder, _: read_rows(folder / "rows.npz"), "rows.npz"),
}
