"""Layers and models in evaluation: they move with their nodes, route rows apart, and compute chosen experts only."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gmoe_ext import models, ops
from gmoe_ext.graph import Graph
from gmoe_ext.nn import GMoEConv, RbMLayer
from tests.graphs import graphs, relabelled
from tests.properties.test_operators import SEEDS, moved, normal

IN, HIDDEN, OUT = 5, 6, 3
BASES = ("gcn", "gin", "sage")
NETWORKS = (*BASES, *(f"gmoe-{base}" for base in BASES))
STUDENTS = ("mlp", "ensemble", "moe", "rbm")


@cache
def network(name: str) -> models.Model:
    torch.manual_seed(1)
    experts = {"num_experts": 4, "num_hop1": 2, "k": 2} if name.startswith("gmoe") else {}
    return models.build(name, in_dim=IN, hidden_dim=HIDDEN, out_dim=OUT, num_layers=2, **experts).eval()


@cache
def student(name: str) -> models.Model:
    torch.manual_seed(1)
    experts = {"num_experts": 3, "k": 2} if name in ("moe", "rbm") else {}
    return models.build(name, in_dim=IN, hidden_dim=HIDDEN, out_dim=OUT, num_layers=2, **experts).eval()


@pytest.mark.parametrize("name", NETWORKS)
@given(graph=graphs(weighted=False), seed=SEEDS)
def test_a_network_moves_with_its_nodes(name: str, graph: Graph, seed: int) -> None:
    other, new_id = relabelled(graph, seed)
    x = normal(seed, graph.num_nodes, IN)
    with torch.inference_mode():
        logits, got = network(name)(x, graph).logits, network(name)(moved(x, new_id), other).logits
    torch.testing.assert_close(got, moved(logits, new_id), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", STUDENTS)
@given(seed=SEEDS, rows=st.integers(1, 12))
def test_a_student_answers_each_row_apart(name: str, seed: int, rows: int) -> None:
    x, order = normal(seed, rows, IN), torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        logits = student(name)(x).logits
        torch.testing.assert_close(student(name)(x[order]).logits, logits[order], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(student(name)(x[:1]).logits, logits[:1], atol=1e-5, rtol=1e-5)


@cache
def conv(base: str) -> GMoEConv:
    torch.manual_seed(2)
    layer = GMoEConv(IN, OUT, num_experts=4, num_hop1=2, k=2, base=base, norm="none").eval()
    torch.nn.init.normal_(layer.experts.linear.bias)
    return layer


@pytest.mark.parametrize("base", ["gcn", "sage"])
@given(graph=graphs(weighted=False), seed=SEEDS)
def test_chosen_experts_of_a_graph_are_all_experts_with_zero_gates(base: str, graph: Graph, seed: int) -> None:
    layer, x = conv(base), normal(seed, graph.num_nodes, IN)
    weight, bias = layer.experts.linear.weight, layer.experts.linear.bias
    norm = graph.gcn_norm() if base == "gcn" else graph.mean_norm(add_self_loops=True)
    with torch.inference_mode():
        routing = layer.gate(x)
        gate_NE = torch.zeros(graph.num_nodes, 4).scatter(1, routing.index, routing.gate)
        sums = [ops.aggregate(norm, x, hops=1 if expert < 2 else 2) for expert in range(4)]
        each = torch.stack([sums[expert] @ weight[expert].T + bias[expert] for expert in range(4)], 1)
        y, _ = layer(x, graph)
    torch.testing.assert_close(y, (gate_NE[..., None] * each).sum(1), atol=1e-5, rtol=1e-4)


@cache
def memory_layer() -> RbMLayer:
    torch.manual_seed(3)
    return RbMLayer(IN, OUT, num_experts=4, k=2).eval()


def all_experts(layer: RbMLayer, x: Tensor) -> Tensor:
    """The layer's formula with every expert computed (RbM, eq. 1)."""
    gate, index = ops.cosine_topk(x, layer.router.memory, layer.k)
    gate_NE = torch.zeros(len(x), layer.num_experts).scatter(1, index, gate)
    scale = layer.input_scale()
    inputs = x[:, None] * (torch.ones(layer.num_experts, IN) if scale is None else scale)
    each = torch.einsum("nei,eoi->neo", inputs, layer.experts.weight) + layer.experts.bias
    return layer.output_scale() * (gate_NE[..., None] * each).sum(1)


@given(SEEDS, st.integers(1, 12))
def test_chosen_experts_of_a_memory_are_all_experts_with_zero_gates(seed: int, rows: int) -> None:
    x = normal(seed, rows, IN)
    with torch.inference_mode():
        y, aux = memory_layer()(x)
        torch.testing.assert_close(y, all_experts(memory_layer(), x), atol=1e-5, rtol=1e-4)
    assert bool(aux.isfinite())


@given(SEEDS, st.integers(0, 12))
def test_evaluation_changes_no_weight_and_repeats_itself(seed: int, rows: int) -> None:
    layer, x = memory_layer(), normal(seed, rows, IN)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with torch.inference_mode():
        assert torch.equal(layer(x)[0], layer(x)[0])
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
