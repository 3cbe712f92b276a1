"""aggregate: one hop, two hops, both types, both directions; on a large sparse and a small dense graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gmoe_ext import Graph, ops, reference

from ..rivals import sparse as rivals
from . import inputs, parity
from .claim import Claim, Experiment, Flatness, Variant, Variants, cost, optional, speedup
from .compiled import compiled
from .settings import Settings, imported

DIM = 128
MATRIX = ("sparse.mm", "sparse.mm sum")
FLAT_NODES = 2048  # 1 MiB of rows: in L2 for any number of edges; larger ones are copied to it where enough edges pay


def experiments(settings: Settings) -> list[Experiment]:
    """Two graphs forward, two with gradients, and the number of edges from 10^5 to 6 x 10^7."""
    graphs = [
        (settings.size(170_000, 600), settings.size(1_200_000, 3_000)),
        (settings.size(20_000, 200), settings.size(500_000, 4_000)),
    ]
    found = []
    for nodes, edges in graphs:
        name = f"aggregate/{nodes}-{edges}"
        found.append(Experiment(name, partial(forward, settings, nodes, edges), _forward_claims(name)))
        name += " with gradients"
        claim = speedup(f"{name}/sparse.mm", "fwd+bwd >= 2.2x torch.sparse.mm", MATRIX, 2.2)
        found.append(Experiment(name, partial(with_gradients, settings, nodes, edges), (claim,), gradients=True))
    found.append(_flat(settings))
    return found


def _forward_claims(name: str) -> tuple[Claim, ...]:
    return (
        speedup(f"{name}/native", "weighted aggregate >= 1.5x torch native", "sparse.mm sum", 1.5),
        speedup(f"{name}/DGL", "weighted aggregate >= 1.0x DGL's unweighted kernel", "DGL unweighted", 1.0),
        speedup(f"{name}/index_add", "weighted aggregate >= 8x index_add", "index_add", 8.0),
        cost(f"{name}/hop-2", "hop-2 <= 2.05x hop-1", "ours", 2.05, "ours, two hops"),
        speedup(f"{name}/bf16", "bf16 >= 1.8x fp32", "ours", 1.8, "ours bf16"),
    )


def forward(settings: Settings, nodes: int, edges: int) -> Variants:
    """Ours, torch's products, index_add, the libraries."""
    graph = inputs.power_law_graph(nodes, edges, seed=0)
    x = inputs.normal(nodes, DIM, seed=1)
    half = x.bfloat16()
    matrix, added = rivals.csr(graph), rivals.index_add(graph)
    right = parity.same(reference.aggregate(graph, x))
    twice = parity.same(reference.aggregate(graph, x, hops=2))
    return {
        "ours": Variant(lambda: ops.aggregate(graph, x), right),
        "ours, two hops": Variant(lambda: ops.aggregate(graph, x, hops=2), twice),
        "ours bf16": Variant(lambda: ops.aggregate(graph, half), parity.same(reference.aggregate(graph, half))),
        "sparse.mm": Variant(lambda: rivals.multiply(matrix, x), right),
        "sparse.mm sum": Variant(lambda: rivals.multiply_sum(matrix, x), right),
        "index_add": Variant(lambda: added(x), right),
        "torch.compile of index_add": optional(lambda: Variant(partial(compiled(settings, added), x), right)),
        "torch-scatter": optional(lambda: _scatter(settings, graph, x, right)),
        "DGL unweighted": optional(lambda: _dgl(settings, graph, x, False)),
        "DGL weighted": optional(lambda: _dgl(settings, graph, x, True)),
    }


def with_gradients(settings: Settings, nodes: int, edges: int) -> Variants:
    """Forward and the gradient of x; the transposed graph of ours is made beforehand, as in training."""
    graph = inputs.power_law_graph(nodes, edges, seed=0)
    x = inputs.normal(nodes, DIM, seed=1).requires_grad_()
    grad_y = inputs.normal(nodes, DIM, seed=2)
    matrix, long_matrix, added = rivals.csr(graph), rivals.csr(graph, torch.int64), rivals.index_add(graph)

    def step(form: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        y = form(x)
        return y.detach(), torch.autograd.grad(y, x, grad_y)[0]

    right = parity.same(step(partial(reference.aggregate, graph)))
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "ours": partial(ops.aggregate, graph),
        "sparse.mm": partial(rivals.multiply, matrix),
        "sparse.mm sum": partial(rivals.multiply_sum, long_matrix),
        "index_add": added,
    }
    return {name: Variant(partial(step, form), right) for name, form in forms.items()}


def _scatter(settings: Settings, graph: Graph, x: Tensor, right: Callable[[Tensor], None]) -> Variant:
    settings.rival("torch-scatter", "torch_scatter")
    run = imported("torch-scatter", lambda: rivals.scatter(graph))
    return Variant(lambda: run(x), right)


def _dgl(settings: Settings, graph: Graph, x: Tensor, weighted: bool) -> Variant:
    settings.rival("DGL", "dgl")
    run = imported("dgl", lambda: rivals.dgl_sum(graph, settings.threads, weighted))
    expected = reference.aggregate(graph if weighted else graph.with_weight(None), x)
    return Variant(lambda: run(x), parity.same(expected))


def _flat(settings: Settings) -> Experiment:
    counts = (2_000, 20_000) if settings.quick else (100_000, 1_000_000, 10_000_000, 60_000_000)
    nodes = settings.size(FLAT_NODES, 256)
    source = "time per edge x feature flat within 25% from 10^5 to 6x10^7 edges"
    names = tuple(f"{edges} edges" for edges in counts)
    claim = Claim(f"aggregate/{nodes} nodes/flat", source, Flatness(names), 1.25, "at most")
    return Experiment(f"aggregate/{nodes} nodes", partial(edge_counts, nodes, counts), (claim,))


def edge_counts(nodes: int, counts: tuple[int, ...]) -> Variants:
    """The same rows, more and more edges; a call of the reference on the largest would take 30 GB of messages."""
    x = inputs.normal(nodes, DIM, seed=1)
    variants = {}
    for edges in counts:
        graph = inputs.uniform_graph(nodes, edges, seed=edges)
        right = parity.same(reference.aggregate(graph, x)) if edges == min(counts) else None
        variants[f"{edges} edges"] = Variant(partial(ops.aggregate, graph, x), right, work=float(edges * DIM))
    return variants
