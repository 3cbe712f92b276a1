"""Peak memory of one call, in a process of its own, against inputs + outputs + 64 MiB."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

SLACK = 64 << 20
FACTOR = 1.1  # the bound on peak over inputs + outputs + SLACK
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Job(NamedTuple):
    """What a process measures.

    Attributes:
        call: returns what it made, all of which counts as output.
        inputs: bytes that were there before.
    """

    call: Callable[[], Any]
    inputs: int


def names(quick: bool) -> list[tuple[str, int]]:
    """(operator, rows or nodes) of each measurement."""
    large = 2_000 if quick else 170_000
    return [(name, large) for name in JOBS]


def measure(name: str, size: int, threads: int) -> dict[str, Any] | None:
    """Run one job in a fresh process; None where the system does not tell the peak (other than Linux)."""
    if not (STATUS.exists() and os.access(CLEAR, os.W_OK)):
        return None
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (name, size, threads))


def _measure(name: str, size: int, threads: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    JOBS[name](64).call()  # what is set up once, such as the stacks of threads, is not the call's
    job = JOBS[name](size)
    gc.collect()
    CLEAR.write_text("5")  # the peak starts anew from what is resident now
    before = _resident("VmRSS")
    made = job.call()
    peak = _resident("VmHWM") - before + job.inputs
    outputs = sum(tensor.nbytes for tensor in made)
    bound = FACTOR * (job.inputs + outputs + SLACK)
    return {
        "name": name,
        "size": size,
        "inputs": job.inputs,
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


def _expert_linear(rows: int, gradients: bool) -> Job:
    import torch

    from gmoe_ext import ops

    from ..claims import inputs
    from .series import DIM, NUM_EXPERTS, K

    gate, index = inputs.routing(rows, NUM_EXPERTS, K, seed=3)
    x, weight = inputs.normal(rows, DIM, seed=0), inputs.normal(NUM_EXPERTS, DIM, DIM, seed=1)
    bias, plan = inputs.normal(NUM_EXPERTS, DIM, seed=2), ops.expert_plan(index, NUM_EXPERTS)
    leaves = [tensor.requires_grad_(gradients) for tensor in (x, weight, bias, gate)]
    given = [*leaves, plan.offsets, plan.order]

    def forward() -> list[torch.Tensor]:
        return [ops.expert_linear(x, weight, bias, plan, gate)]

    return _job(forward, given, leaves if gradients else None, inputs.normal(rows, DIM, seed=4) if gradients else None)


def _aggregate(nodes: int, gradients: bool) -> Job:
    import torch

    from gmoe_ext import ops

    from ..claims import inputs
    from .series import EDGES_PER_NODE

    graph = inputs.uniform_graph(nodes, nodes * EDGES_PER_NODE, seed=0)
    x = inputs.normal(nodes, 128, seed=1).requires_grad_(gradients)
    given = [x, graph.offsets, graph.columns, graph.weight]
    if gradients:  # the transposed graph is made once for many calls
        reverse = graph.transpose()
        given += [reverse.offsets, reverse.columns, reverse.weight, graph.transpose_order]

    def forward() -> list[torch.Tensor]:
        return [ops.aggregate(graph, x)]

    return _job(forward, given, [x] if gradients else None, inputs.normal(nodes, 128, seed=2) if gradients else None)


def _job(forward: Callable[[], list[Any]], given: list[Any], leaves: list[Any] | None, grad_y: Any) -> Job:
    import torch

    held = sum(tensor.nbytes for tensor in given)
    if leaves is None:
        return Job(forward, held)

    def with_gradients() -> list[Any]:
        (y,) = forward()
        return [y, *torch.autograd.grad(y, leaves, grad_y)]

    return Job(with_gradients, held + grad_y.nbytes)


JOBS: dict[str, Callable[[int], Job]] = {
    "expert_linear": lambda size: _expert_linear(size, False),
    "expert_linear with gradients": lambda size: _expert_linear(size, True),
    "aggregate": lambda size: _aggregate(size, False),
    "aggregate with gradients": lambda size: _aggregate(size, True),
}
