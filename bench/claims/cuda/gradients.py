"""The gradient of every operator against that of its reference, which is plain eager PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from gmoe_ext import Graph, ops, reference

from .. import inputs, parity
from ..claim import Experiment, Variant, Variants, speedup
from ..molecules import made_up
from ..settings import Settings

NUM_EXPERTS, K = 8, 3
Call = Callable[..., Any]
Make = Callable[[Settings], tuple[Call, Call, list[Tensor]]]


def experiments(settings: Settings) -> list[Experiment]:
    """One per operator that has a gradient."""
    found = []
    for operator, make in OPERATORS.items():
        name = f"cuda gradients/{operator}"
        claim = speedup(f"{name}/eager", "every op's backward >= 1.5x the eager reference", "eager", 1.5)
        found.append(Experiment(name, partial(backward, settings, make), (claim,), gradients=True))
    return found


def backward(settings: Settings, make: Make) -> Variants:
    """The forward is done beforehand and kept; both start from the same cotangents."""
    ours, eager, values = make(settings)
    calls = {}
    for name, function in (("ours", ours), ("eager", eager)):
        leaves = [value.detach().clone().requires_grad_() for value in values]
        results = [t for t in tree_leaves(function(*leaves)) if isinstance(t, Tensor) and t.requires_grad]
        cotangents = [inputs.normal(*t.shape, seed=9, dtype=t.dtype).to(t.device) for t in results]
        calls[name] = partial(torch.autograd.grad, results, leaves, cotangents, retain_graph=True)
    # By norms: of many thousand rows a few choose between experts that float32 cannot tell apart.
    right = parity.same_step(calls["eager"]())
    return {"ours": Variant(calls["ours"], right), "eager": Variant(calls["eager"])}


def _normal(settings: Settings, *shape: int, seed: int) -> Tensor:
    return inputs.normal(*shape, seed=seed).to(settings.device)


def _cosine_topk(settings: Settings) -> tuple[Call, Call, list[Tensor]]:
    x = _normal(settings, settings.size(170_000, 300), 256, seed=0)
    memory = _normal(settings, NUM_EXPERTS, 256, seed=1)
    return *(partial(_first, room.cosine_topk, memory, K) for room in (ops, reference)), [x]


def _first(operator: Call, *others: Any) -> Any:
    *fixed, x = others
    return operator(x, *fixed)[0]


def _topk_softmax(settings: Settings) -> tuple[Call, Call, list[Tensor]]:
    logits = _normal(settings, settings.size(170_000, 300), NUM_EXPERTS, seed=0)
    return *(partial(_first, room.topk_softmax, K) for room in (ops, reference)), [logits]


def _noisy_topk(settings: Settings) -> tuple[Call, Call, list[Tensor]]:
    shape = settings.size(170_000, 300), NUM_EXPERTS
    clean, noise = _normal(settings, *shape, seed=0), _normal(settings, *shape, seed=1)
    sigma = _normal(settings, *shape, seed=2).abs() + 0.1

    def call(room: Any, clean: Tensor, sigma: Tensor) -> Any:
        gate, _, importance, load = room.noisy_topk(clean, sigma, noise, K)
        return gate, importance, load

    return partial(call, ops), partial(call, reference), [clean, sigma]


def _expert_linear(settings: Settings) -> tuple[Call, Call, list[Tensor]]:
    rows, dim = settings.size(20_000, 200), settings.size(256, 16)
    gate, index = inputs.routing(rows, NUM_EXPERTS, K, seed=3)
    plan = reference.expert_plan(index.to(settings.device), NUM_EXPERTS)

    def call(room: Any, x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor) -> Any:
        return room.expert_linear(x, weight, bias, plan, gate)

    values = [
        _normal(settings, rows, dim, seed=0),
        _normal(settings, NUM_EXPERTS, dim, dim, seed=1) / dim**0.5,
        _normal(settings, NUM_EXPERTS, dim, seed=2),
        gate.to(settings.device),
    ]
    return partial(call, ops), partial(call, reference), values


def _expert_norm(settings: Settings) -> tuple[Call, Call, list[Tensor]]:
    rows, k, dim = settings.size(26_000, 200), 4, settings.size(150, 16)
    gate, index = inputs.routing(rows, NUM_EXPERTS, k, seed=3)
    index = index.to(settings.device)
    mean, var = torch.zeros(NUM_EXPERTS, dim), torch.ones(NUM_EXPERTS, dim)
    running = mean.to(settings.device), var.to(settings.device)

    def call(room: Any, y: Tensor, weight: Tensor, bias: Tensor, gate: Tensor) -> Any:
        return room.expert_norm(y, index, weight, bias, *running, gate)[0]

    values = [
        _normal(settings, rows, k, dim, seed=0),
        _normal(settings, NUM_EXPERTS, dim, seed=1),
        _normal(settings, NUM_EXPERTS, dim, seed=2),
        gate.to(settings.device),
    ]
    return partial(call, ops), partial(call, reference), values


def _aggregate(settings: Settings) -> tuple[Call, Call, list[Tensor]]:
    nodes, edges = settings.size(170_000, 200), settings.size(1_200_000, 2_000)
    graph = inputs.power_law_graph(nodes, edges, seed=0).to(settings.device)
    graph.transpose()
    x = _normal(settings, nodes, 128, seed=1)
    return partial(ops.aggregate, graph), partial(reference.aggregate, graph), [x]


def _bonds(settings: Settings) -> Graph:
    graphs = settings.size(1084, 6)
    graph = made_up(graphs, seed=0).graph.gcn_norm().to(settings.device)
    graph.transpose()
    return graph


def _edge_aggregate(settings: Settings) -> tuple[Call, Call, list[Tensor]]:
    graph, dim = _bonds(settings), settings.size(300, 16)
    values = [_normal(settings, graph.num_nodes, dim, seed=0), _normal(settings, graph.num_edge_types, dim, seed=1)]
    return partial(ops.edge_aggregate, graph), partial(reference.edge_aggregate, graph), values


def _routed_edge_aggregate(settings: Settings) -> tuple[Call, Call, list[Tensor]]:
    graph, experts, dim = _bonds(settings), 4, settings.size(150, 16)
    _, index = inputs.routing(graph.num_nodes, experts, 2, seed=3)
    index = index.to(settings.device)

    def call(room: Any, x: Tensor, table: Tensor) -> Any:
        return room.routed_edge_aggregate(graph, x, table, index)

    values = [
        _normal(settings, experts, graph.num_nodes, dim, seed=0),
        _normal(settings, experts, graph.num_edge_types, dim, seed=1),
    ]
    return partial(call, ops), partial(call, reference), values


OPERATORS: dict[str, Make] = {
    "cosine_topk": _cosine_topk,
    "topk_softmax": _topk_softmax,
    "noisy_topk": _noisy_topk,
    "expert_linear": _expert_linear,
    "expert_norm": _expert_norm,
    "aggregate": _aggregate,
    "edge_aggregate": _edge_aggregate,
    "routed_edge_aggregate": _routed_edge_aggregate,
}
