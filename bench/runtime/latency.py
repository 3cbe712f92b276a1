"""Latency of one row of a packed RbM student: python -m bench.runtime.latency [--calls 100000]

Every call gets another random row, so that the experts it needs are rarely all in the nearest cache.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from time import perf_counter_ns

import numpy as np
import torch

from gmoe_ext import models
from gmoe_ext.export import pack
from gmoe_ext.export.pack import WEIGHTS
from gmoe_ext.runtime import PackedStudent

PERCENTILES = (50, 95, 99, 99.9)


def main() -> None:
    parser = argparse.ArgumentParser(description="Latency of one row, in microseconds.")
    parser.add_argument("--calls", type=int, default=100_000)
    calls: int = parser.parse_args().calls
    torch.manual_seed(0)
    options = {"in_dim": 192, "hidden_dim": 256, "out_dim": 40, "num_layers": 3}
    rows = np.random.default_rng(0).standard_normal((4096, 1, 192), np.float32)
    for name, experts in (("rbm", {"num_experts": 8, "k": 3}), ("mlp", {})):
        model = models.build(name, **options, **experts).eval()
        for dtype in WEIGHTS:
            with tempfile.TemporaryDirectory() as directory:
                student = PackedStudent.load(pack(model, Path(directory) / "student.safetensors", dtype=dtype))
                times = measure(student, rows, calls)
            record = {"student": name, "weights": dtype, **options, **experts, "calls": calls}
            record["cpu"] = student.info()["cpu"]
            record |= {f"p{p:g}_us": round(float(np.percentile(times, p)) / 1e3, 2) for p in PERCENTILES}
            record["load_average"] = round(os.getloadavg()[0], 2)
            print(json.dumps(record))


def measure(student: PackedStudent, rows: np.ndarray, calls: int) -> np.ndarray:
    times = np.empty(calls, np.int64)
    for i in range(-1000, calls):  # the first thousand warm up
        start = perf_counter_ns()
        student.predict(rows[i % len(rows)])
        times[max(i, 0)] = perf_counter_ns() - start
    return times


if __name__ == "__main__":
    main()
