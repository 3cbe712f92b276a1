"""Every operator beside its pure-PyTorch reference and its rivals, forward and with gradients, from one table.

`make bench` runs all of it; `pytest bench/bench_ops.py -o python_files='bench_*.py' -k "topk_softmax and 1x8"` a part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from gmoe_ext import ops, reference
from gmoe_ext.graph import Graph

from .claims.inputs import feature_rows, normal, routing
from .rivals import sparse

EDGE_TYPES = 61
MOLECULES = ((800, 2_500, 150), (26_000, 80_000, 150))  # a batch of 32 molecules with self loops; an evaluation batch
# Bags of words: the size of Cora, and rows as sparse as Coauthor CS's.
FEATURES = ((2_708, 1_433, 18), (1_000, 6_805, 60))

Call = Callable[[], Any]


@dataclass(frozen=True)
class Bench:
    """How one operator is timed.

    Attributes:
        sizes: each makes one group of the report.
        title: of a group, a format of the sizes.
        arguments: makes the operator's arguments from the sizes.
        leaves: positions of the arguments whose gradients are timed as well; empty times the forward alone.
        rivals: name -> makes a call from the same arguments, forward alone or with gradients.
        forward_rivals: those that have no gradient.
    """

    sizes: tuple[tuple[int, ...], ...]
    title: str
    arguments: Callable[..., tuple[Any, ...]]
    leaves: tuple[int, ...] = ()
    rivals: dict[str, Callable[..., Call]] = field(default_factory=dict)
    forward_rivals: dict[str, Callable[..., Call]] = field(default_factory=dict)


def random_graph(num_nodes: int, num_edges: int, num_edge_types: int = 0) -> Graph:
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.randint(num_nodes, (2, num_edges), generator=generator)
    edge_type = torch.randint(num_edge_types, (num_edges,), generator=generator) if num_edge_types else None
    return Graph.from_edge_index(edge_index, num_nodes, torch.rand(num_edges, generator=generator), edge_type)


def rings(num_nodes: int) -> Graph:
    """Rings of six nodes joined in pairs: the degrees of molecules, edges in both directions, 60 edge types."""
    node = torch.arange(num_nodes)
    ring = torch.stack([node, (node // 6) * 6 + (node + 1) % 6])
    bridge = torch.stack([node[::12], node[::12] + 6])
    edges = torch.cat([ring, bridge], dim=1)
    edges = edges[:, (edges < num_nodes).all(dim=0)]
    edges = torch.cat([edges, edges.flip(0)], dim=1)
    edge_type = torch.randint(60, (edges.shape[1],), generator=torch.Generator().manual_seed(0))
    return Graph.from_edge_index(edges, num_nodes, edge_type=edge_type, num_edge_types=60)


def sparse_mm(graph: Graph, x: Tensor) -> Call:
    matrix = sparse.csr(graph)
    return lambda: matrix @ x


def expert_linear(rows: int, dim: int) -> tuple[Any, ...]:
    gate, index = routing(rows, 8, 3, seed=3)
    weight = normal(8, dim, dim, seed=1) / dim**0.5
    return normal(rows, dim, seed=0), weight, normal(8, dim, seed=2), ops.expert_plan(index, 8), gate


def loop(x: Tensor, weight: Tensor, bias: Tensor, plan: Any, gate: Tensor) -> Call:
    """The eager loop over experts (index_select, addmm, index_add), with the plan at hand as ours has it."""

    def run() -> Tensor:
        y = x.new_zeros(plan.num_rows, weight.shape[1])
        offsets, flat_gate = plan.offsets.tolist(), gate.reshape(-1, 1)
        for expert in range(weight.shape[0]):
            slots = plan.order[offsets[expert] : offsets[expert + 1]]
            rows = slots // plan.k
            part = torch.addmm(bias[expert], x.index_select(0, rows), weight[expert].T)
            y = y.index_add(0, rows, part * flat_gate[slots])
        return y

    return run


def gemm(x: Tensor, weight: Tensor, bias: Tensor, plan: Any, _gate: Tensor) -> Call:
    """The floor: one dense product with as many rows as there are slots."""
    slots = x.repeat_interleave(plan.k, 0)
    return lambda: torch.addmm(bias[0], slots, weight[0].T)


def expert_norm(rows: int, dim: int) -> tuple[Any, ...]:
    gate, index = ops.topk_softmax(normal(rows, 8, seed=0), 4)
    weight, bias, mean = normal(3, 8, dim, seed=1)
    return normal(rows, 4, dim, seed=2), index, weight, bias, mean, torch.ones(8, dim), gate


def memory_update(rows: int, dim: int) -> tuple[Any, ...]:
    x, memory = normal(rows, dim, seed=0), normal(8, dim, seed=1)
    return memory, x, *ops.cosine_topk(x, memory, 3)


def edge_aggregate(nodes: int, edges: int, dim: int) -> tuple[Any, ...]:
    return random_graph(nodes, edges, EDGE_TYPES), normal(nodes, dim, seed=0), normal(EDGE_TYPES, dim, seed=1)


def routed_edge_aggregate(nodes: int, edges: int, dim: int) -> tuple[Any, ...]:
    _, index = routing(nodes, 8, 4, seed=3)
    graph = random_graph(nodes, edges, EDGE_TYPES)
    return graph, normal(8, nodes, dim, seed=0), normal(8, EDGE_TYPES, dim, seed=1), index


def routed_edge_mixture(nodes: int, edges: int, dim: int) -> tuple[Any, ...]:
    gate, _ = routing(nodes, 8, 4, seed=3)
    return *routed_edge_aggregate(nodes, edges, dim), gate, *normal(2, 8, dim, seed=4)


def noisy_topk(rows: int, experts: int, k: int) -> tuple[Any, ...]:
    clean, noise, scale = normal(3, rows, experts, seed=0)
    return clean, scale.abs() + 0.01, noise, k


def sparse_expert_linear(rows: int, columns: int, values: int) -> tuple[Any, ...]:
    gate, index = routing(rows, 8, 3, seed=3)
    weight = normal(8, columns, 128, seed=4).transpose(1, 2)
    return feature_rows(rows, columns, values), weight, normal(8, 128, seed=5), index, gate, normal(8, columns, seed=6)


def sparse_linear(rows: int, columns: int, values: int) -> tuple[Any, ...]:
    weight = normal(columns, 128, seed=4).T
    return feature_rows(rows, columns, values), weight, normal(128, seed=5)


def torch_dropout(x: Tensor, _seed: Tensor, rate: float, slots: int) -> Call:
    return lambda: torch.nn.functional.dropout(x.repeat_interleave(slots, dim=0), rate)


OPERATORS: dict[str, Bench] = {
    "aggregate": Bench(
        ((800, 2_500, 150), (20_000, 500_000, 128), (170_000, 1_200_000, 128)),
        "{} nodes, {} edges, D={}",
        lambda nodes, edges, dim: (random_graph(nodes, edges), normal(nodes, dim, seed=0)),
        leaves=(1,),
        forward_rivals={"sparse_mm": sparse_mm},
    ),
    "cosine_topk": Bench(
        ((1, 256), (1_000, 256), (20_000, 256)),
        "{}x{}, E=8, k=3",
        lambda rows, dim: (normal(rows, dim, seed=0), normal(8, dim, seed=1), 3),
    ),
    "cosine_topk_update": Bench(
        ((1, 256), (1_000, 256), (20_000, 256), (170_000, 256)),
        "{}x{}, E=8, k=3",
        lambda rows, dim: (normal(rows, dim, seed=0), normal(8, dim, seed=1), 3),
    ),
    "dropout": Bench(
        ((1_024, 256), (20_000, 256)),
        "{}x{}, rate 0.5, 3 slots",
        lambda rows, dim: (normal(rows, dim, seed=0), torch.tensor([0]), 0.5, 3),
        leaves=(0,),
        rivals={"torch": torch_dropout},
    ),
    "edge_aggregate": Bench(
        ((800, 2_500, 300), (26_000, 80_000, 300), (20_000, 500_000, 128)),
        "{} nodes, {} edges, D={}",
        edge_aggregate,
        leaves=(1, 2),
    ),
    "expert_linear": Bench(
        ((1, 256), (1_024, 256), (20_000, 256)),
        "{}x{}, E=8, k=3",
        expert_linear,
        leaves=(0, 1, 2, 4),
        rivals={"loop": loop},
        forward_rivals={"gemm": gemm},
    ),
    "expert_norm": Bench(((800, 150), (26_000, 150), (170_000, 64)), "{}x{}, E=8, k=4", expert_norm),
    "expert_plan": Bench(
        ((1, 8), (1_000, 8), (170_000, 8), (170_000, 64)),
        "{}x3, E={}",
        lambda rows, experts: (torch.randint(experts, (rows, 3), generator=torch.Generator().manual_seed(0)), experts),
    ),
    "memory_update": Bench(((1, 256), (1_000, 256), (20_000, 256), (170_000, 256)), "{}x{}, E=8, k=3", memory_update),
    "noisy_topk": Bench(((800, 8, 4), (26_000, 8, 4), (170_000, 16, 2)), "{}x{}, k={}", noisy_topk),
    "random_walk": Bench(
        ((2_500, 10_000), (20_000, 500_000)),
        "{} nodes, {} edges, ten walks of 80 from each",
        lambda nodes, edges: (random_graph(nodes, edges), torch.arange(nodes).repeat(10), 80, 0),
    ),
    "routed_edge_aggregate": Bench(
        MOLECULES, "{} nodes, {} edges, D={}, E=8, k=4", routed_edge_aggregate, leaves=(1, 2)
    ),
    "routed_edge_mixture": Bench(MOLECULES, "{} nodes, {} edges, D={}, E=8, k=4", routed_edge_mixture),
    "sparse_expert_linear": Bench(
        FEATURES, "{}x{}, {} values a row, D=128, E=8, k=3", sparse_expert_linear, leaves=(1, 2, 4, 5)
    ),
    "sparse_linear": Bench(FEATURES, "{}x{}, {} values a row, D=128", sparse_linear, leaves=(1, 2)),
    "topk_softmax": Bench(
        ((1, 8), (1_000, 8), (170_000, 8), (20_000, 64)),
        "{}x{}, k=4",
        lambda rows, experts: (normal(rows, experts, seed=0), 4),
    ),
    "two_hop_graph": Bench(((800,), (26_000,), (1_000_000,)), "{} nodes", lambda nodes: (rings(nodes),)),
}


def cases() -> Iterator[Any]:
    for operator, bench in OPERATORS.items():
        for gradients in (False, True) if bench.leaves else (False,):
            rivals = bench.rivals if gradients else bench.rivals | bench.forward_rivals
            for sizes in bench.sizes:
                for implementation in ("native", "reference", *rivals):
                    label = [operator, "x".join(map(str, sizes)), implementation, *["gradients"] * gradients]
                    yield pytest.param(operator, sizes, implementation, gradients, id="-".join(label))


@pytest.mark.parametrize(("operator", "sizes", "implementation", "gradients"), cases())
def test_operator(benchmark: Any, operator: str, sizes: tuple[int, ...], implementation: str, gradients: bool) -> None:
    bench = OPERATORS[operator]
    arguments = bench.arguments(*sizes)
    leaves = [arguments[place].requires_grad_() for place in bench.leaves] if gradients else []
    if implementation in ("native", "reference"):
        forward = partial(getattr(ops if implementation == "native" else reference, operator), *arguments)
    else:
        forward = (bench.rivals | bench.forward_rivals)[implementation](*arguments)
    grad_y = torch.ones_like(forward()) if gradients else None
    benchmark.group = f"{operator} {bench.title.format(*sizes)}" + " with gradients" * gradients
    benchmark.extra_info["implementation"] = implementation
    benchmark(forward if grad_y is None else lambda: torch.autograd.grad(forward(), leaves, grad_y))
