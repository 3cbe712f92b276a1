"""The demo: train two GNNs, distill a student from the better one, pack it, and time an answer of each.

This is what the command line does without arguments (configs/default.yaml), and with `model`, `teacher` and `student`
all set, on any node data.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import GmoeError
from ..export import pack, preparation
from ..feature_rows import dense_of
from ..models.gnn import NodeServer
from ..models.registry import Model
from ..runtime import PackedStudent
from ..timing import microseconds
from .config import Config
from .report import Outcome, Trained, align, sizes
from .run import Run
from .tasks.distill import Distilled, distill

BATCH = 4096
# The packed student sums in another order, so its logits differ by rounding.
TOLERANCE = 1e-3


class Cost(NamedTuple):
    """What an answer costs, in microseconds per node, one by one and in batches of BATCH."""

    single: float
    batch: float


def train(config: Config, run: Run, device: torch.device) -> Outcome:
    """Train both networks, distill the better one, pack the student, and time all three."""
    done = distill(config, run, device)
    outcome = done.outcome()
    if run.dry_run:
        return outcome
    path = run.directory / "student.safetensors"
    data = done.scene.data
    normalize = preparation(config.data.row_normalize)
    pack(done.student.model, path, class_names=data.class_names or None, normalize=normalize, positions=done.positions)
    packed = PackedStudent.load(path)
    check_packed(done, packed)
    costs = [gnn_cost(model, done) for model, _ in done.candidates] + [student_cost(packed, done)]
    models = [*done.candidates, done.student]
    outcome.extra["us_per_node"] = {
        fit.phase: {"batch_1": round(cost.single, 2), f"batch_{BATCH}": round(cost.batch, 3)}
        for (_, fit), cost in zip(models, costs, strict=True)
    }
    outcome.extra["packed"] = {"file": path.name, "bytes": packed.num_bytes}
    outcome.lines = table(models, costs)
    outcome.lines[-1] += f"   <- packed: {path} ({packed.num_bytes / 1e6:.1f} MB, needs no torch)"
    outcome.next_command = f"python -m gmoe_ext.predict --student {path} --input YOUR.npz  # arrays x and nodes"
    return outcome


def table(models: list[Trained], costs: list[Cost]) -> list[str]:
    """Return one line per model: test score at the best validation epoch, size, cost of an answer."""
    metric = models[0][1].metric
    rows: list[tuple[str, ...]] = [
        ("model", f"test {metric}", "params active/total", "us per node (1)", f"us per node ({BATCH})")
    ]
    for (model, fit), cost in zip(models, costs, strict=True):
        score = f"{fit.test_at_best_val:.3f}"
        rows.append((fit.phase, score, sizes(model), f"{cost.single:,.1f}", f"{cost.batch:,.2f}"))
    return align(rows)


def requests(done: Distilled, nodes: Tensor) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return what a caller passes to the packed student: features, and node ids if positions are in its file."""
    return dense_of(done.scene.data.x[nodes]).cpu().numpy(), None if done.positions is None else nodes.cpu().numpy()


def check_packed(done: Distilled, packed: PackedStudent) -> None:
    """Check that the packed file answers as the student it was made from.

    Raises:
        GmoeError: its logits differ.
    """
    nodes = done.scene.data.test_idx[:BATCH]
    with torch.inference_mode():
        expected = done.student.model.eval()(done.rows[nodes]).logits.cpu().numpy()
    difference = float(np.abs(packed.predict(*requests(done, nodes)) - expected).max())
    if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise GmoeError(f"the packed student's logits differ from the trained one's by {difference:.3g}")


def gnn_cost(model: Model, done: Distilled) -> Cost:
    """Time a GNN in memory, which fetches the nodes its answer depends on; a batch may run over the whole graph.

    Answers of a GPU are copied back to the host, as the caller of a service would get them.
    """
    data = done.scene.data
    server = NodeServer(model, data.x, data.graph)
    singles, many = torch.split(data.test_idx, 1), some_nodes(data.test_idx)
    return Cost(
        microseconds(lambda i: server.answer(singles[i % len(singles)]).cpu()),
        microseconds(lambda _: server.answer(many).cpu()) / len(many),
    )


def student_cost(packed: PackedStudent, done: Distilled) -> Cost:
    """Time the packed student, which reads one row, or many at once."""
    x, nodes = requests(done, some_nodes(done.scene.data.test_idx))

    def single(i: int) -> object:
        row = i % len(x)
        return packed.predict(x[row : row + 1], None if nodes is None else nodes[row : row + 1])

    return Cost(microseconds(single), microseconds(lambda _: packed.predict(x, nodes)) / len(x))


def some_nodes(nodes: Tensor) -> Tensor:
    """Return BATCH of the nodes, repeated if there are fewer."""
    return nodes.repeat(-(-BATCH // len(nodes)))[:BATCH]
