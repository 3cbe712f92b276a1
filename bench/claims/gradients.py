"""On a GPU: the gradient of every operator against that of its reference, which is plain eager PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from gmoe_ext import Graph, ops, reference

from . import inputs, parity
from .claim import Experiment, Variant, Variants, speedup
from .settings import Settings

NUM_EXPERTS, K = 8, 3
# Makes call(package, *leaves), where the package is gmoe_ext.ops or gmoe_ext.reference, and the leaves.
Make = Callable[[Settings], tuple[Callable[..., Any], list[Tensor]]]


def gpu_experiments(settings: Settings) -> list[Experiment]:
    """One experiment for each operator with a gradient."""
    found = []
    for operator, make in OPERATORS.items():
        name = f"cuda gradients/{operator}"
        claim = speedup(f"{name}/eager", "every op's backward >= 1.5x the eager reference", "eager", 1.5)
        found.append(Experiment(name, partial(backward, settings, make), (claim,), gradients=True))
    return found


def backward(settings: Settings, make: Make) -> Variants:
    """Prepare the backward alone: the forward is done beforehand, and both start from the same cotangents."""
    call, values = make(settings)
    calls = {}
    for name, package in (("ours", ops), ("eager", reference)):
        leaves = [value.detach().clone().requires_grad_() for value in values]
        results = [t for t in tree_leaves(call(package, *leaves)) if isinstance(t, Tensor) and t.requires_grad]
        cotangents = [inputs.normal(*t.shape, seed=9, dtype=t.dtype).to(t.device) for t in results]
        calls[name] = partial(torch.autograd.grad, results, leaves, cotangents, retain_graph=True)
    # Compared by norms: a few of many thousand rows choose between experts that float32 cannot tell apart.
    right = parity.same_step(calls["eager"]())
    return {"ours": Variant(calls["ours"], right), "eager": Variant(calls["eager"])}


def _normal(settings: Settings, *shape: int, seed: int) -> Tensor:
    return inputs.normal(*shape, seed=seed).to(settings.device)


def _cosine_topk(settings: Settings) -> tuple[Callable[..., Any], list[Tensor]]:
    memory = _normal(settings, NUM_EXPERTS, 256, seed=1)
    x = _normal(settings, settings.size(170_000, 300), 256, seed=0)
    return lambda package, x: package.cosine_topk(x, memory, K)[0], [x]


def _topk_softmax(settings: Settings) -> tuple[Callable[..., Any], list[Tensor]]:
    logits = _normal(settings, settings.size(170_000, 300), NUM_EXPERTS, seed=0)
    return lambda package, logits: package.topk_softmax(logits, K)[0], [logits]


def _noisy_topk(settings: Settings) -> tuple[Callable[..., Any], list[Tensor]]:
    shape = settings.size(170_000, 300), NUM_EXPERTS
    clean, noise = _normal(settings, *shape, seed=0), _normal(settings, *shape, seed=1)
    sigma = _normal(settings, *shape, seed=2).abs() + 0.1

    def call(package: Any, clean: Tensor, sigma: Tensor) -> Any:
        gate, _, importance, load = package.noisy_topk(clean, sigma, noise, K)
        return gate, importance, load

    return call, [clean, sigma]


def _dropout(settings: Settings) -> tuple[Callable[..., Any], list[Tensor]]:
    x, seed = _normal(settings, settings.size(20_000, 200), 256, seed=0), torch.tensor([7], device=settings.device)
    return lambda package, x: package.dropout(x, seed, 0.5, K), [x]


def _expert_linear(settings: Settings) -> tuple[Callable[..., Any], list[Tensor]]:
    rows, dim = settings.size(20_000, 200), settings.size(256, 16)
    gate, index = inputs.routing(rows, NUM_EXPERTS, K, seed=3)
    plan = reference.expert_plan(index.to(settings.device), NUM_EXPERTS)
    return lambda package, x, weight, bias, gate: package.expert_linear(x, weight, bias, plan, gate), [
        _normal(settings, rows, dim, seed=0),
        _normal(settings, NUM_EXPERTS, dim, dim, seed=1) / dim**0.5,
        _normal(settings, NUM_EXPERTS, dim, seed=2),
        gate.to(settings.device),
    ]


def _expert_norm(settings: Settings) -> tuple[Callable[..., Any], list[Tensor]]:
    rows, k, dim = settings.size(26_000, 200), 4, settings.size(150, 16)
    gate, index = inputs.routing(rows, NUM_EXPERTS, k, seed=3)
    index = index.to(settings.device)
    mean, var = torch.zeros(NUM_EXPERTS, dim), torch.ones(NUM_EXPERTS, dim)
    running = mean.to(settings.device), var.to(settings.device)
    return lambda package, y, weight, bias, gate: package.expert_norm(y, index, weight, bias, *running, gate)[0], [
        _normal(settings, rows, k, dim, seed=0),
        _normal(settings, NUM_EXPERTS, dim, seed=1),
        _normal(settings, NUM_EXPERTS, dim, seed=2),
        gate.to(settings.device),
    ]


def _aggregate(settings: Settings) -> tuple[Callable[..., Any], list[Tensor]]:
    nodes, edges = settings.size(170_000, 200), settings.size(1_200_000, 2_000)
    graph = inputs.power_law_graph(nodes, edges, seed=0).to(settings.device)
    graph.transpose()
    return lambda package, x: package.aggregate(graph, x), [_normal(settings, nodes, 128, seed=1)]


def _bonds(settings: Settings) -> Graph:
    graph = inputs.made_up_molecules(settings.size(1084, 6), seed=0).graph.gcn_norm().to(settings.device)
    graph.transpose()
    return graph


def _edge_aggregate(settings: Settings) -> tuple[Callable[..., Any], list[Tensor]]:
    graph, dim = _bonds(settings), settings.size(300, 16)
    values = [_normal(settings, graph.num_nodes, dim, seed=0), _normal(settings, graph.num_edge_types, dim, seed=1)]
    return lambda package, x, table: package.edge_aggregate(graph, x, table), values


def _routed_edge_aggregate(settings: Settings) -> tuple[Callable[..., Any], list[Tensor]]:
    graph, experts, dim = _bonds(settings), 4, settings.size(150, 16)
    _, index = inputs.routing(graph.num_nodes, experts, 2, seed=3)
    index = index.to(settings.device)
    return lambda package, x, table: package.routed_edge_aggregate(graph, x, table, index), [
        _normal(settings, experts, graph.num_nodes, dim, seed=0),
        _normal(settings, experts, graph.num_edge_types, dim, seed=1),
    ]


def _sparse_expert_linear(settings: Settings) -> tuple[Callable[..., Any], list[Tensor]]:
    rows = settings.size(2_700, 40)
    x = inputs.feature_rows(rows, 1_433, 18).to(settings.device)
    gate, index = inputs.routing(rows, NUM_EXPERTS, K, seed=3)
    gate, index = gate.to(settings.device), index.to(settings.device)
    weight, scale = _normal(settings, NUM_EXPERTS, 64, 1_433, seed=4), _normal(settings, NUM_EXPERTS, 1_433, seed=6)
    return lambda package, weight, scale: package.sparse_expert_linear(x, weight, None, index, gate, scale), [
        weight.transpose(1, 2).contiguous().transpose(1, 2),
        scale,
    ]


def _sparse_linear(settings: Settings) -> tuple[Callable[..., Any], list[Tensor]]:
    x = inputs.feature_rows(settings.size(18_000, 40), 6_805, 60).to(settings.device)
    weight = _normal(settings, 6_805, 128, seed=4).T
    return lambda package, weight: package.sparse_linear(x, weight), [weight]


OPERATORS: dict[str, Make] = {
    "cosine_topk": _cosine_topk,
    "topk_softmax": _topk_softmax,
    "noisy_topk": _noisy_topk,
    "dropout": _dropout,
    "expert_linear": _expert_linear,
    "sparse_expert_linear": _sparse_expert_linear,
    "sparse_linear": _sparse_linear,
    "expert_norm": _expert_norm,
    "aggregate": _aggregate,
    "edge_aggregate": _edge_aggregate,
    "routed_edge_aggregate": _routed_edge_aggregate,
}
