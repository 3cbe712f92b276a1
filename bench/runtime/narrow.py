"""What storing weights in fewer bits costs trained students: python -m bench.runtime.narrow RUN_DIR [RUN_DIR ...]

Each run is a finished distillation. Its best student is packed with each kind of weights and
answers every node of its data; accuracy is that of the data's test nodes. Prints Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gmoe_ext.data import NodeData
from gmoe_ext.export import Comparison, Rows, compare, pack
from gmoe_ext.export.pack import WEIGHTS
from gmoe_ext.export.run import TrainedStudent, load_student
from gmoe_ext.runtime import PackedStudent
from gmoe_ext.train.config import Config
from gmoe_ext.train.parse import load_recipe
from gmoe_ext.train.tasks.scene import load_data

HEAD = ("student", "weights", "MB", "logits off by", "same class", "test accuracy", "change, points")


def question(config: Config, student: TrainedStudent) -> Rows:
    """Every node as callers of the file ask for it: features before normalisation, and the node's row of the table."""
    data = load_data(dataclasses.replace(config, data=dataclasses.replace(config.data, row_normalize=False)))
    if not isinstance(data, NodeData):
        raise SystemExit(f"error: data '{config.data.name}' has no nodes")
    labels = np.full(data.num_nodes, -1)
    labels[data.test_idx] = data.y[data.test_idx]
    nodes = None if student.positions is None else np.arange(data.num_nodes)
    return Rows(data.x.numpy(), nodes, labels)


def measured(run_dir: Path) -> Iterator[tuple[str, float, Comparison]]:
    """Kind of weights, size of the file in MB, and the file beside its model."""
    student = load_student(run_dir)
    rows = question(load_recipe(run_dir / "config.yaml"), student)
    for weights in WEIGHTS:
        with tempfile.TemporaryDirectory() as folder:
            path = pack(
                *(student.model, Path(folder) / "student.safetensors"),
                normalize=student.normalize,
                positions=student.positions,
                dtype=weights,
            )
            packed = PackedStudent.load(path)
            yield weights, packed.num_bytes / 1e6, compare(student.model, packed, rows, student.positions)


def cells(name: str, weights: str, size: float, found: Comparison) -> tuple[str, ...]:
    """One line of the table."""
    assert found.accuracy is not None and found.model_accuracy is not None
    change = 100 * (found.accuracy - found.model_accuracy)
    agreement = (f"{found.largest_difference:.1e}", f"{100 * found.same_class:.3f}%")
    return name, weights, f"{size:.1f}", *agreement, f"{100 * found.accuracy:.2f}", f"{change:+.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What narrow weights cost trained students.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_DIR")
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|")
    for run_dir in parser.parse_args(arguments).runs:
        for weights, size, found in measured(run_dir):
            print("| " + " | ".join(cells(run_dir.name, weights, size, found)) + " |", flush=True)


if __name__ == "__main__":
    main()
