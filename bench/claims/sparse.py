"""aggregate: one hop, two hops, both types, both directions; on a large sparse and a small dense graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gmoe_ext import ops, reference

from ..rivals import sparse as rivals
from . import inputs, parity
from .claim import Claim, Experiment, Flatness, Missing, Variant, Variants, cost, optional, speedup
from .settings import Settings, compiled, imported

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
        found.append(Experiment(name, partial(with_gradients, nodes, edges), (claim,), gradients=True))
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
    """Prepare ours, torch's products, index_add and the libraries."""
    graph = inputs.power_law_graph(nodes, edges, seed=0)
    x = inputs.normal(nodes, DIM, seed=1)
    half = x.bfloat16()
    matrix, added = rivals.csr(graph), rivals.index_add(graph)
    right = parity.same(reference.aggregate(graph, x))
    twice = parity.same(reference.aggregate(graph, x, hops=2))

    def scatter() -> Variant:
        settings.rival("torch-scatter", "torch_scatter")
        return Variant(partial(imported("torch-scatter", lambda: rivals.scatter(graph)), x), right)

    def dgl(weighted: bool) -> Variant:
        settings.rival("DGL", "dgl")
        run = imported("dgl", lambda: rivals.dgl_sum(graph, settings.threads, weighted))
        expected = reference.aggregate(graph if weighted else graph.with_weight(None), x)
        return Variant(partial(run, x), parity.same(expected))

    return {
        "ours": Variant(lambda: ops.aggregate(graph, x), right),
        "ours, two hops": Variant(lambda: ops.aggregate(graph, x, hops=2), twice),
        "ours bf16": Variant(lambda: ops.aggregate(graph, half), parity.same(reference.aggregate(graph, half))),
        "sparse.mm": Variant(lambda: rivals.multiply(matrix, x), right),
        "sparse.mm sum": Variant(lambda: rivals.multiply_sum(matrix, x), right),
        "index_add": Variant(lambda: added(x), right),
        "torch.compile of index_add": optional(lambda: Variant(partial(compiled(settings, added), x), right)),
        "torch-scatter": optional(scatter),
        "DGL unweighted": optional(lambda: dgl(weighted=False)),
        "DGL weighted": optional(lambda: dgl(weighted=True)),
    }


def with_gradients(nodes: int, edges: int) -> Variants:
    """Prepare forward and the gradient of x; our transposed graph is made beforehand, as in training."""
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


def _flat(settings: Settings) -> Experiment:
    counts = (2_000, 20_000) if settings.quick else (100_000, 1_000_000, 10_000_000, 60_000_000)
    nodes = settings.size(FLAT_NODES, 256)
    source = "time per edge x feature flat within 25% from 10^5 to 6x10^7 edges"
    names = tuple(f"{edges} edges" for edges in counts)
    claim = Claim(f"aggregate/{nodes} nodes/flat", source, Flatness(names), 1.25, "at most")
    return Experiment(f"aggregate/{nodes} nodes", partial(edge_counts, nodes, counts), (claim,))


def edge_counts(nodes: int, counts: tuple[int, ...]) -> Variants:
    """Prepare the same rows with more and more edges; the reference would need 30 GB of messages for the largest."""
    x = inputs.normal(nodes, DIM, seed=1)
    variants = {}
    for edges in counts:
        graph = inputs.uniform_graph(nodes, edges, seed=edges)
        right = parity.same(reference.aggregate(graph, x)) if edges == min(counts) else None
        variants[f"{edges} edges"] = Variant(partial(ops.aggregate, graph, x), right, work=float(edges * DIM))
    return variants


def gpu_experiments(settings: Settings) -> list[Experiment]:
    """A graph of ogbn-arxiv's size and a small dense one, against cuSPARSE, which torch calls for CSR matrices."""
    found = []
    sizes = [(170_000, 1_200_000), (20_000, 500_000)] if not settings.quick else [(200, 2_000), (50, 2_000)]
    for nodes, edges in sizes:
        name = f"cuda sparse/{nodes}-{edges}"
        claims = (
            speedup(f"{name}/float32", "SpMM >= 1.0x cached cuSPARSE fp32", "cuSPARSE", 1.0),
            speedup(f"{name}/bfloat16", "SpMM >= 1.5x cached cuSPARSE fp32 with bf16", "cuSPARSE", 1.5, "ours bf16"),
        )
        found.append(Experiment(name, partial(gpu_forward, settings, nodes, edges), claims))
    return found


def gpu_forward(settings: Settings, nodes: int, edges: int) -> Variants:
    """Prepare one hop and two; the matrix is made beforehand."""
    graph = inputs.power_law_graph(nodes, edges, seed=0).to(settings.device)
    x = inputs.normal(nodes, DIM, seed=1).to(settings.device)
    half, matrix, added = x.bfloat16(), rivals.csr(graph), rivals.index_add(graph)
    right = parity.same(reference.aggregate(graph, x))
    of_half = parity.same(reference.aggregate(graph, half))

    def narrow() -> Variant:
        narrow_matrix = matrix.bfloat16()
        try:
            rivals.multiply(narrow_matrix, half)
        except RuntimeError as error:
            raise Missing(f"torch does not run it here: {str(error).splitlines()[0]}") from error
        return Variant(lambda: rivals.multiply(narrow_matrix, half))

    return {
        "ours": Variant(lambda: ops.aggregate(graph, x), right),
        "ours, two hops": Variant(lambda: ops.aggregate(graph, x, hops=2)),
        "ours bf16": Variant(lambda: ops.aggregate(graph, half), of_half),
        "cuSPARSE": Variant(lambda: rivals.multiply(matrix, x), right),
        "cuSPARSE bf16": optional(narrow),  # with its weights rounded, so not compared
        "index_add": Variant(lambda: added(x), right),
    }
