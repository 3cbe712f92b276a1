"""Measure what storing a student's weights in fewer bits gains and costs: python -m bench.narrow [RUN_DIR ...]

Without arguments: the latency of one row of a random RbM and a random MLP with each kind of weights, as JSON lines.
Every call gets another row, so that the experts it needs are rarely all in the nearest cache.

With finished distillations: the accuracy of their best students, as Markdown. Each is packed with each kind of weights
and answers every node of its data; accuracy is that of the test nodes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from gmoe_ext import models
from gmoe_ext.data import NodeData
from gmoe_ext.export import Comparison, Rows, compare, pack
from gmoe_ext.export.pack import WEIGHTS
from gmoe_ext.export.run import TrainedStudent, load_student
from gmoe_ext.runtime import PackedStudent
from gmoe_ext.timing import in_bursts
from gmoe_ext.train.config import Config
from gmoe_ext.train.parse import load_recipe
from gmoe_ext.train.tasks.scene import load_data

HEAD = ("student", "weights", "MB", "logits off by", "same class", "test accuracy", "change, points")
SHAPE = {"in_dim": 192, "hidden_dim": 256, "out_dim": 40, "num_layers": 3}
PERCENTILES = (50, 95, 99, 99.9)


def latencies(seconds: float) -> Iterator[dict[str, object]]:
    """Time single rows of every student, interleaved; yields one record per student and kind of weights."""
    torch.manual_seed(0)
    rows = np.random.default_rng(0).standard_normal((4096, 1, 192), np.float32)
    asks, records = {}, {}
    for name, experts in (("rbm", {"num_experts": 8, "k": 3}), ("mlp", {})):
        model = models.build(name, **SHAPE, **experts).eval()
        for weights in WEIGHTS:
            with tempfile.TemporaryDirectory() as folder:
                student = PackedStudent.load(pack(model, Path(folder) / "student.safetensors", dtype=weights))
            label = f"{name} {weights}"
            asks[label] = lambda i, predict=student.predict: predict(rows[i % len(rows)])
            records[label] = {"student": name, "weights": weights, **SHAPE, **experts, "cpu": student.info()["cpu"]}
    for label, samples in in_bursts(asks, seconds).items():
        percentiles = {f"p{p:g}_us": round(1e6 * samples.percentile(p), 2) for p in PERCENTILES}
        calls, load = len(samples.seconds), round(os.getloadavg()[0], 2)
        yield {**records[label], "calls": calls, **percentiles, "load_average": load}


def question(config: Config, student: TrainedStudent) -> Rows:
    """Return every node as callers of the file ask for it: features before normalisation, row of the position table."""
    data = load_data(dataclasses.replace(config, data=dataclasses.replace(config.data, row_normalize=False)))
    if not isinstance(data, NodeData):
        raise SystemExit(f"error: data '{config.data.name}' has no nodes")
    labels = np.full(data.num_nodes, -1)
    labels[data.test_idx] = data.y[data.test_idx]
    nodes = None if student.positions is None else np.arange(data.num_nodes)
    return Rows(data.x.numpy(), nodes, labels)


def measured(run_dir: Path) -> Iterator[tuple[str, float, Comparison]]:
    """Yield each kind of weights, the size of the file in MB, and the file's answers compared with the model's."""
    student = load_student(run_dir)
    rows = question(load_recipe(run_dir / "config.yaml"), student)
    for weights in WEIGHTS:
        with tempfile.TemporaryDirectory() as folder:
            path = pack(student.model, Path(folder) / "student.safetensors", **student.content, dtype=weights)
            packed = PackedStudent.load(path)
            yield weights, packed.num_bytes / 1e6, compare(student.model, packed, rows, student.positions)


def cells(name: str, weights: str, size: float, found: Comparison) -> tuple[str, ...]:
    """Format one line of the table."""
    assert found.accuracy is not None and found.model_accuracy is not None
    change = 100 * (found.accuracy - found.model_accuracy)
    agreement = (f"{found.largest_difference:.1e}", f"{100 * found.same_class:.3f}%")
    return name, weights, f"{size:.1f}", *agreement, f"{100 * found.accuracy:.2f}", f"{change:+.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the latencies, or the table of the runs."""
    parser = argparse.ArgumentParser("python -m bench.narrow", description="What narrow weights gain and cost.")
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN_DIR", help="a finished distillation; none: latency")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each latency (default: 3)")
    options = parser.parse_args(arguments)
    if not options.runs:
        for record in latencies(options.seconds):
            print(json.dumps(record))
        return
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|")
    for run_dir in options.runs:
        for weights, size, found in measured(run_dir):
            print("| " + " | ".join(cells(run_dir.name, weights, size, found)) + " |", flush=True)


if __name__ == "__main__":
    main()
