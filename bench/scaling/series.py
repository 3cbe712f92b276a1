"""Series of sizes and the time per unit of work at each. N nodes or rows, M edges, D features, E experts."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from gmoe_ext import ops, reference

from ..claims import inputs, parity
from ..claims.machine import caches
from ..claims.timing import Samples, interleave

DIM, NUM_EXPERTS, K = 256, 8, 3
EDGES_PER_NODE = 7  # as in the citation graph of 170,000 nodes and 1.2 million edges
CHECKED = 1_000_000  # edges or rows x features up to which a point is compared with the reference

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
    """Rows of the two dense operators, edges of the sum over neighbours."""
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


def measure(series: Series, budget_s: float) -> dict[str, Any]:
    """Check the small points against the reference, then time all of them interleaved.

    Raises:
        Mismatch: the operator does not give what the reference gives.
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
    check = parity.same(expected) if isinstance(expected, torch.Tensor) else parity.same_routing(*expected)
    check(point.call())


def _record(point: Point, samples: Samples) -> dict[str, Any]:
    return {
        "size": point.size,
        "ns_per_work": samples.per_work(0) * 1e9,
        "low": samples.per_work(-1) * 1e9,
        "high": samples.per_work(1) * 1e9,
        "working_set": point.working_set,
        "lies_in": level(point.working_set),
    }


def level(working_set: int) -> str:
    """The smallest cache that holds it, else "memory"."""
    for number, size in sorted(caches().items()):
        if working_set <= size:
            return f"L{number}"
    return "memory"
