"""Every operator over a graph computes what its reference computes, on any graph that hypothesis thinks of."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("hypothesis")  # the other contract tests run without it, as on a machine that is lent for its GPU

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graphs import graphs

from .opinfo import OpSpec
from .samples import Random, Sample
from .test_contract_forward import GRAPH_OPS, assert_agrees


@pytest.mark.parametrize("spec", GRAPH_OPS, ids=str)
def test_equals_the_reference_on_any_graph(spec: OpSpec, device: torch.device) -> None:
    base = spec.rows(2)
    typed = "edge_table" in base.args or spec.name == "two_hop_graph"

    @settings(max_examples=25, derandomize=True)
    @given(graph=graphs(num_edge_types=3 if typed else 0, dtype=torch.float64), seed=st.integers(0, 999))
    def check(graph: object, seed: int) -> None:
        assert_agrees(spec, _on_graph(base, graph, Random(str(seed))).on(device), 1e-12)

    check()


def _on_graph(base: Sample, graph: object, random: Random) -> Sample:
    """The base sample's call with a drawn graph: every tensor whose size is the number of nodes is drawn to fit."""
    nodes: int = graph.num_nodes  # type: ignore[attr-defined]
    changed: dict[str, object] = {"graph": graph}
    if "x" in base.args:
        changed["x"] = random.normal(*base["x"].shape[:-2], nodes, 3)
    if "edge_table" in base.args:
        changed["edge_table"] = random.normal(*base["edge_table"].shape[:-2], 3, 3)
    if "index" in base.args:
        changed["index"] = random.integers(5, nodes, 2)
    if "onto" in base.args:
        experts = base["edge_table"].shape[0]
        changed |= {"gate": random.gate(nodes, 2), "onto": random.normal(nodes, 3)}
        changed |= {"scale": random.normal(experts, 3), "shift": random.normal(experts, 3)}
    if "starts" in base.args:
        changed["starts"] = random.integers(nodes, 4 if nodes else 0)
    return base.replace(changed)
