"""The subject of the report: a packed student and, where its run is known, its teacher and its graph."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data import NodeData
from ..errors import ConfigError, DataError
from ..export import pack
from ..export.run import TrainedModel, load_student, load_teacher
from ..feature_rows import dense_of
from ..models.gnn import NodeServer
from ..runtime import PackedStudent
from ..train.parse import load_recipe
from ..train.tasks.scene import load_data

REQUEST_BYTES = 64 << 20  # of features, for the requests of one batch size
MOST_REQUESTS = 4096
RANDOM_NODES = 20_000


@dataclass(frozen=True)
class Requests:
    """Batches of rows that are requested in turn.

    Attributes:
        x: [R, B, F] features as callers of the packed file hand them in.
        nodes: [R, B] rows of the position table, or None where ``x`` has the positions.
        ids: [R, B] nodes of the graph, int64; None without a graph.
    """

    x: NDArray[np.float32]
    nodes: NDArray[np.int64] | None
    ids: Tensor | None


@dataclass(frozen=True)
class Subject:
    """A student with its data and teacher.

    Attributes:
        path: the packed file.
        packed: the student.
        data: the nodes it was trained on, features before normalisation; None without a run.
        teacher: the network that taught it, answering from memory; None without a run.
        teacher_name: of that network.
    """

    path: Path
    packed: PackedStudent
    data: NodeData | None = None
    teacher: NodeServer | None = None
    teacher_name: str = ""

    def requests(self, batch: int, seed: int) -> Requests:
        """Draw random nodes of the graph, or random rows without a graph."""
        random, features = np.random.default_rng(seed), self.packed.info()["features"]
        table = features["position_nodes"]
        columns = features["columns"] + (0 if table else features["position_columns"])
        count = max(4, min(MOST_REQUESTS, REQUEST_BYTES // (4 * batch * max(1, columns))))
        if self.data is None:
            x = random.standard_normal((count, batch, columns), np.float32)
            return Requests(x, random.integers(0, table, (count, batch)) if table else None, None)
        ids = random.integers(0, self.data.num_nodes, (count, batch))
        return Requests(dense_of(self.data.x).numpy()[ids], ids if table else None, torch.from_numpy(ids))


def load(path: Path, run_dir: Path | None, data_root: Path | None, scratch: Path) -> Subject:
    """Load a packed file, or a run directory, whose best student is packed into ``scratch``.

    Args:
        path: the file or the directory.
        run_dir: run of the student; not needed where the file lies in it.
        data_root: where the run's data are now; None: where they were during training.
        scratch: a directory for temporary files.

    Raises:
        ConfigError: the run has no student or no teacher, or its data are not node data or do not match the file.
        DataError: a file is damaged, or the data are missing.
    """
    if path.is_dir():
        run_dir = path
        student = load_student(path)
        path = pack(student.model, scratch / "student.safetensors", **student.content)
    elif run_dir is None and (path.parent / "checkpoints").is_dir():
        run_dir = path.parent
    packed = PackedStudent.load(path)
    if run_dir is None:
        return Subject(path, packed)
    trained = load_teacher(run_dir)
    data = _data(run_dir, data_root)
    _check_fit(packed, data, run_dir)
    return Subject(path, packed, data, _server(trained, data), trained.model.name)


def _data(run_dir: Path, root: Path | None) -> NodeData:
    config = load_recipe(run_dir / "config.yaml")
    chosen = dataclasses.replace(config.data, row_normalize=False)
    if root is not None:
        chosen = dataclasses.replace(chosen, root=str(root))
    data = load_data(dataclasses.replace(config, data=chosen))
    if not isinstance(data, NodeData):
        raise ConfigError(f"{run_dir}: expected a run on node data, got '{config.data.name}'")
    return data


def _check_fit(packed: PackedStudent, data: NodeData, run_dir: Path) -> None:
    features = packed.info()["features"]
    if features["columns"] != data.num_features or (features["position_columns"] and not features["position_nodes"]):
        raise ConfigError(
            f"{packed.path}: expected the student of {run_dir}, of {data.num_features} features and with its position "
            f"table; it takes {features['columns']} features and has positions of {features['position_nodes']} nodes"
        )
    if features["position_nodes"] not in (0, data.num_nodes):
        raise DataError(
            f"{packed.path}: its table has {features['position_nodes']} nodes, '{data.name}' has {data.num_nodes}"
        )


def _server(trained: TrainedModel, data: NodeData) -> NodeServer:
    seen = data.row_normalized() if trained.row_normalized else data
    return NodeServer(trained.model, seen.x, seen.graph)
