"""Measure time per unit of work over sizes, and peak memory. N nodes or rows, M edges, D features, E experts."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gmoe_ext import ops, reference

from ..claims import inputs, parity
from ..claims.machine import caches
from ..timing import Samples, interleave

DIM, NUM_EXPERTS, K = 256, 8, 3
EDGES_PER_NODE = 7  # as in the citation graph of 170,000 nodes and 1.2 million edges
CHECKED = 1_000_000  # edges or rows x features up to which a point is compared with the reference
SLACK = 64 << 20
FACTOR = 1.1  # the bound on peak memory over inputs + outputs + SLACK
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

Call = Callable[[], Any]


@dataclass(frozen=True)
class Point:
    """One size of a series.

    Attributes:
        size: rows or edges.
        call: the operator on it.
        work: units of work.
        working_set: bytes that are read or written again and again while it runs.
        expected: the same by the reference.
    """

    size: int
    call: Call
    work: float
    working_set: int
    expected: Call


@dataclass(frozen=True)
class Series:
    """Sizes of one operator.

    Attributes:
        name: what grows in what.
        unit: of work.
        points: from small to large.
    """

    name: str
    unit: str
    points: Callable[[], list[Point]]


def all_series(quick: bool) -> list[Series]:
    """List the series: rows of the two dense operators, edges of the sum over neighbours."""
    rows = (100, 300) if quick else (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
    edges = (2_000, 6_000) if quick else (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000, 60_000_000)
    nodes = 256 if quick else 8192
    return [
        Series(f"expert_linear, d={DIM}, E={NUM_EXPERTS}, k={K}", "row", partial(_expert_linear, rows)),
        Series(f"cosine_topk, d={DIM}, E={NUM_EXPERTS}, k={K}", "row", partial(_cosine_topk, rows)),
        Series(
            f"aggregate, {nodes:,} nodes, d=128", "edge x feature", partial(_aggregate, edges, lambda _: nodes, 128)
        ),
        Series(
            f"aggregate, {EDGES_PER_NODE} edges a node, d=16",
            "edge x feature",
            partial(_aggregate, edges, lambda count: count // EDGES_PER_NODE, 16),
        ),
    ]


def _expert_linear(sizes: tuple[int, ...]) -> list[Point]:
    weight = inputs.normal(NUM_EXPERTS, DIM, DIM, seed=1) / DIM**0.5
    bias = inputs.normal(NUM_EXPERTS, DIM, seed=2)
    points = []
    for rows in sizes:
        x = inputs.normal(rows, DIM, seed=0)
        gate, index = inputs.routing(rows, NUM_EXPERTS, K, seed=3)
        plan = ops.expert_plan(index, NUM_EXPERTS)
        operands = x, weight, bias, plan, gate
        call, expected = partial(ops.expert_linear, *operands), partial(reference.expert_linear, *operands)
        points.append(Point(rows, call, float(rows), 2 * x.nbytes, expected))
    return points


def _cosine_topk(sizes: tuple[int, ...]) -> list[Point]:
    memory = inputs.normal(NUM_EXPERTS, DIM, seed=1)
    points = []
    for rows in sizes:
        x = inputs.normal(rows, DIM, seed=0)
        call, expected = partial(ops.cosine_topk, x, memory, K), partial(reference.cosine_topk, x, memory, K)
        points.append(Point(rows, call, float(rows), x.nbytes, expected))
    return points


def _aggregate(sizes: tuple[int, ...], nodes_of: Callable[[int], int], dim: int) -> list[Point]:
    points = []
    for edges in sizes:
        nodes = nodes_of(edges)
        graph, x = inputs.uniform_graph(nodes, edges, seed=edges), inputs.normal(nodes, dim, seed=1)
        call, expected = partial(ops.aggregate, graph, x), partial(reference.aggregate, graph, x)
        points.append(Point(edges, call, float(edges * dim), 2 * x.nbytes, expected))
    return points


def time_series(series: Series, budget_s: float) -> dict[str, Any]:
    """Check the small points against the reference, then time all points interleaved.

    Raises:
        Mismatch: the operator's result differs from the reference.
    """
    with torch.inference_mode():
        points = series.points()
        for point in points:
            if point.work * (DIM if series.unit == "row" else 1) <= CHECKED * DIM:
                _check(point)
        times = interleave({str(point.size): (point.call, point.work) for point in points}, budget_s)
    record = {
        "name": series.name,
        "unit": series.unit,
        "points": [_record(point, times[str(point.size)]) for point in points],
    }
    del points
    gc.collect()
    return record


def _check(point: Point) -> None:
    expected = point.expected()
    check = parity.same(expected) if isinstance(expected, Tensor) else parity.same_routing(*expected)
    check(point.call())


def _record(point: Point, samples: Samples) -> dict[str, Any]:
    return {
        "size": point.size,
        "ns_per_work": samples.per_work(0) * 1e9,
        "low": samples.per_work(-1) * 1e9,
        "high": samples.per_work(1) * 1e9,
        "working_set": point.working_set,
        "lies_in": _level(point.working_set),
    }


def _level(working_set: int) -> str:
    """The smallest cache that holds it, else "memory"."""
    return next((f"L{level}" for level, size in sorted(caches().items()) if working_set <= size), "memory")


def peak_memory(name: str, size: int, threads: int) -> dict[str, Any] | None:
    """Measure one call in a fresh process; None where the system does not report the peak (other than Linux)."""
    if not (STATUS.exists() and os.access(CLEAR, os.W_OK)):
        return None
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, (name, size, threads))


def _peak_memory(name: str, size: int, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    JOBS[name](64)[0]()  # what is set up once, such as the stacks of threads, does not belong to the call
    call, inputs_bytes = JOBS[name](size)
    gc.collect()
    CLEAR.write_text("5")  # resets the peak to what is resident now
    before = _resident("VmRSS")
    made = call()
    peak = _resident("VmHWM") - before + inputs_bytes
    outputs = sum(tensor.nbytes for tensor in made)
    bound = FACTOR * (inputs_bytes + outputs + SLACK)
    return {
        "name": name,
        "size": size,
        "inputs": inputs_bytes,
        "outputs": outputs,
        "peak": peak,
        "bound": bound,
        "within": peak <= bound,
    }


def _resident(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise LookupError(f"{STATUS} has no {field}")


# A job is a call that returns all it made, which counts as output, and the bytes of its inputs.
Job = tuple[Callable[[], list[Tensor]], int]


def _expert_linear_job(rows: int, gradients: bool) -> Job:
    gate, index = inputs.routing(rows, NUM_EXPERTS, K, seed=3)
    x, weight = inputs.normal(rows, DIM, seed=0), inputs.normal(NUM_EXPERTS, DIM, DIM, seed=1)
    bias, plan = inputs.normal(NUM_EXPERTS, DIM, seed=2), ops.expert_plan(index, NUM_EXPERTS)
    leaves = [tensor.requires_grad_(gradients) for tensor in (x, weight, bias, gate)]
    forward = partial(ops.expert_linear, x, weight, bias, plan, gate)
    return _job(forward, [plan.offsets, plan.order], leaves, inputs.normal(rows, DIM, seed=4) if gradients else None)


def _aggregate_job(nodes: int, gradients: bool) -> Job:
    graph = inputs.uniform_graph(nodes, nodes * EDGES_PER_NODE, seed=0)
    x = inputs.normal(nodes, 128, seed=1).requires_grad_(gradients)
    given: list[Any] = [graph.offsets, graph.columns, graph.weight]
    if gradients:  # the transposed graph is made once for many calls
        reverse = graph.transpose()
        given += [reverse.offsets, reverse.columns, reverse.weight, graph.transpose_order]
    forward = partial(ops.aggregate, graph, x)
    return _job(forward, given, [x], inputs.normal(nodes, 128, seed=2) if gradients else None)


def _job(forward: Callable[[], Tensor], given: Iterable[Tensor], leaves: list[Tensor], grad_y: Tensor | None) -> Job:
    held = sum(tensor.nbytes for tensor in (*leaves, *given))
    if grad_y is None:
        return lambda: [forward()], held

    def with_gradients() -> list[Tensor]:
        y = forward()
        return [y, *torch.autograd.grad(y, leaves, grad_y)]

    return with_gradients, held + grad_y.nbytes


JOBS: dict[str, Callable[[int], Job]] = {
    "expert_linear": lambda size: _expert_linear_job(size, False),
    "expert_linear with gradients": lambda size: _expert_linear_job(size, True),
    "aggregate": lambda size: _aggregate_job(size, False),
    "aggregate with gradients": lambda size: _aggregate_job(size, True),
}
