"""aggregate against cuSPARSE, which torch calls for its CSR matrices."""

from __future__ import annotations

from functools import partial

from gmoe_ext import ops, reference

from ...rivals import sparse as rivals
from .. import inputs, parity
from ..claim import Experiment, Missing, Variant, Variants, optional, speedup
from ..settings import Settings

DIM = 128


def experiments(settings: Settings) -> list[Experiment]:
    """A graph of ogbn-arxiv's size, and a small dense one."""
    found = []
    sizes = [(170_000, 1_200_000), (20_000, 500_000)] if not settings.quick else [(200, 2_000), (50, 2_000)]
    for nodes, edges in sizes:
        name = f"cuda sparse/{nodes}-{edges}"
        claims = (
            speedup(f"{name}/float32", "SpMM >= 1.0x cached cuSPARSE fp32", "cuSPARSE", 1.0),
            speedup(f"{name}/bfloat16", "SpMM >= 1.5x cached cuSPARSE fp32 with bf16", "cuSPARSE", 1.5, "ours bf16"),
        )
        found.append(Experiment(name, partial(forward, settings, nodes, edges), claims))
    return found


def forward(settings: Settings, nodes: int, edges: int) -> Variants:
    """One hop and two; the matrix is made beforehand."""
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
