"""Seeded float64 arguments of every operator, over all sizes and shapes that matter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gmoe_ext import reference
from gmoe_ext.feature_rows import FeatureRows

from .samples import Random, Sample

SIZES = (0, 1, 2, 63, 257, 2000)
WIDTHS = (1, 7, 31, 128, 13, 64)  # one feature width per size: 1, primes, powers of two
GRAPHS = ("edgeless", "random", "isolated", "hub", "duplicates", "loops")


# ---- routing


def cosine(rows: int, dim: int, experts: int, k: int) -> Sample:
    label = f"N{rows}-D{dim}-E{experts}-k{k}"
    random = Random("cosine_topk " + label)
    x, memory = random.away_from_zero(rows, dim), random.away_from_zero(experts, dim)
    return Sample(label, {"x": x, "memory": memory, "k": k})


def cosine_samples() -> Iterator[Sample]:
    for rows, dim, k in zip(SIZES, WIDTHS, (1, 2, 3, 4, 8, 3), strict=True):
        yield cosine(rows, dim, 8, k)
    for experts in (1, 2, 5, 17):
        yield from (cosine(2, 19, experts, k) for k in range(1, experts + 1))
    zeros = cosine(3, 7, 4, 2)
    yield Sample("zero-rows", {**zeros.args, "x": zeros["x"] * torch.tensor([[1.0], [0.0], [1.0]])})
    yield Sample("large-eps", {**cosine(63, 5, 4, 2).args, "eps": 3.0})


def cosine_scores(sample: Sample) -> Tensor:
    x, memory = sample["x"].double(), sample["memory"].double()
    return torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(memory, dim=1).T


def cosine_update(rows: int, dim: int, experts: int, k: int, **options: Any) -> Sample:
    routed = cosine(rows, dim, experts, k)
    label = routed.label + "".join(f"-{name}{value}" for name, value in options.items())
    return Sample(label, {**routed.args, **options})


def cosine_update_samples() -> Iterator[Sample]:
    yield from cosine_samples()
    yield cosine_update(63, 7, 4, 2, normalize=False)
    yield cosine_update(3, 5, 17, 1)  # most experts without rows
    yield cosine_update(2100, 5, 3, 2)  # more than one chunk of rows
    yield from (cosine_update(9, 5, 3, 1, rate=rate) for rate in (0.0, 0.5, 1.0))


def drop(rows: int, width: int, rate: float, slots: int) -> Sample:
    label = f"N{rows}-D{width}-rate{rate}-slots{slots}"
    x = Random("dropout " + label).normal(rows, width)
    return Sample(label, {"x": x, "seed": torch.tensor([-17 * rows]), "rate": rate, "slots": slots})


def dropout_samples() -> Iterator[Sample]:
    for rows, width, slots in zip(SIZES, WIDTHS, (1, 2, 3, 1, 2, 1), strict=True):
        yield drop(rows, width, 0.5, slots)
    yield from (drop(7, 13, rate, 2) for rate in (0.0, 1e-9, 0.3, 0.999999))
    yield drop(3, 0, 0.5, 2)


def topk(rows: int, experts: int, k: int) -> Sample:
    label = f"N{rows}-E{experts}-k{k}"
    return Sample(label, {"logits": 3 * Random("topk_softmax " + label).normal(rows, experts), "k": k})


def topk_samples() -> Iterator[Sample]:
    for rows, experts, k in zip(SIZES, (8, 16, 3, 8, 61, 8), (2, 4, 3, 1, 5, 3), strict=True):
        yield topk(rows, experts, k)
    for experts in (1, 2, 5, 17, 130):
        yield from (topk(2, experts, k) for k in {1, 2, 3, experts - 1, experts} if 1 <= k <= experts)
    yield Sample("far-apart", {"logits": 400 * Random("far").normal(63, 8), "k": 4})


def noisy(rows: int, experts: int, k: int) -> Sample:
    label = f"N{rows}-E{experts}-k{k}"
    random = Random("noisy_topk " + label)
    sigma = random.normal(rows, experts).abs() + 0.1
    logits = {"clean": random.normal(rows, experts), "sigma": sigma, "noise": random.normal(rows, experts)}
    return Sample(label, {**logits, "k": k})


def noisy_samples() -> Iterator[Sample]:
    for rows, experts, k in zip(SIZES, (8, 16, 3, 8, 61, 8), (2, 4, 3, 1, 5, 3), strict=True):
        yield noisy(rows, experts, k)
    for experts in (1, 2, 5, 17, 130):
        yield from (noisy(2, experts, k) for k in {1, 2, 3, experts - 1, experts} if 1 <= k <= experts)
    quiet = noisy(63, 8, 4)
    yield Sample("little-noise", {**quiet.args, "sigma": quiet["sigma"] / 10})


def noisy_scores(sample: Sample) -> Tensor:
    return sample["clean"].double() + sample["noise"].double() * sample["sigma"].double()


# ---- dispatch


def plan(rows: int, experts: int, k: int) -> Sample:
    label = f"N{rows}-E{experts}-k{k}"
    return Sample(label, {"index": Random("plan " + label).distinct(rows, experts, k), "num_experts": experts})


def plan_samples() -> Iterator[Sample]:
    for rows, experts, k in zip(SIZES, (8, 8, 1, 5, 17, 8), (3, 8, 1, 2, 1, 3), strict=True):
        yield plan(rows, experts, k)
    yield Sample("most-experts-empty", {"index": 3 * Random("empty").integers(2, 63, 2), "num_experts": 301})
    yield Sample("an-expert-twice-in-a-row", {"index": torch.tensor([[2, 2], [0, 2]]), "num_experts": 4})


def linear(
    rows: int, dims: tuple[int, int], experts: int, k: int, gate: bool, bias: bool = True, source: int | None = None
) -> Sample:
    label = f"N{rows}-{dims[0]}x{dims[1]}-E{experts}-k{k}" + "-gate" * gate + "-bias" * bias
    random = Random("expert_linear " + label)
    plan = reference.expert_plan(random.distinct(rows, experts, k), experts)
    args = {
        "x": random.normal(rows if source is None else source, dims[0]),
        "weight": random.normal(experts, dims[1], dims[0]) / dims[0] ** 0.5,
        "bias": random.normal(experts, dims[1]) if bias else None,
        "plan": plan,
        "gate": random.gate(rows, k) if gate else None,
    }
    if source is not None:
        args["source"] = random.integers(source, rows, k)
        label += f"-from{source}"
    return Sample(label, args)


def linear_samples() -> Iterator[Sample]:
    dims = ((7, 5), (1, 1), (31, 13), (64, 31), (128, 64), (16, 8))
    for rows, shape, k in zip(SIZES, dims, (2, 1, 8, 3, 1, 3), strict=True):
        yield linear(rows, shape, 8, k, gate=True)
        yield linear(rows, shape, 8, k, gate=False, bias=False)
    yield from (linear(5, (11, 3), 4, k, gate=True, bias=False) for k in (1, 2, 3, 4))
    yield linear(63, (17, 9), 4, 2, gate=True, source=20)
    yield linear(3, (5, 4), 1, 1, gate=False, source=40)
    yield linear(2, (6, 7), 31, 2, gate=True)  # nearly every expert empty
    twice = linear(4, (3, 2), 3, 2, gate=True)
    yield Sample("an-expert-twice", {**twice.args, "plan": reference.expert_plan(torch.full((4, 2), 1), 3)})


def sparse_linear(
    rows: int, dims: tuple[int, int], experts: int, k: int, density: float = 0.2, without: tuple[str, ...] = (),
    dense: int = 0, per_slot: bool = False, binary: bool = False,
) -> Sample:  # fmt: skip
    options = "".join(f"-no-{name}" for name in without) + f"-dense{dense}" * (dense > 0) + "-per-slot" * per_slot
    label = f"N{rows}-{dims[0]}x{dims[1]}-E{experts}-k{k}{options}" + "-binary" * binary
    random = Random("sparse_expert_linear " + label)
    x, in_dim = random.feature_rows(rows, dims[0], density, binary), dims[0] + dense
    if dense:
        x = x.with_values(x.values, None).cat(random.normal(rows, dense))
    if per_slot:
        x = FeatureRows(
            x.offsets, x.columns, random.normal(len(x.columns), k), x.num_sparse, random.normal(rows, k, dense)
        )
    args: dict[str, Any] = {
        "x": x,
        "weight": random.normal(experts, dims[1], in_dim),
        "bias": random.normal(experts, dims[1]),
        "index": random.distinct(rows, experts, k),
        "gate": random.gate(rows, k),
        "scale": random.normal(experts, in_dim).exp(),
    }
    return Sample(label, args | dict.fromkeys(without))


def sparse_linear_samples() -> Iterator[Sample]:
    dims = ((7, 5), (1, 1), (31, 13), (64, 31), (128, 64), (16, 8))
    for rows, shape, k in zip(SIZES, dims, (2, 1, 8, 3, 1, 3), strict=True):
        yield sparse_linear(rows, shape, 8, k)
        yield sparse_linear(rows, shape, 8, k, without=("gate", "bias", "scale"))
    yield sparse_linear(63, (40, 150), 4, 2, density=0.9)  # two tiles of outputs on AVX-512, more on others
    yield sparse_linear(63, (40, 33), 4, 2, dense=3, without=("gate",))
    yield sparse_linear(63, (40, 16), 4, 2, dense=3, per_slot=True)
    yield sparse_linear(63, (300, 9), 31, 2, density=0.05, binary=True)
    yield sparse_linear(5, (11, 3), 2, 2, density=0.0)
    yield sparse_linear(3000, (3, 4), 2, 1, density=1.0)  # columns longer than a piece of the gradient
    twice = sparse_linear(4, (3, 2), 3, 2, density=0.7)
    yield Sample("an-expert-twice", {**twice.args, "index": torch.full((4, 2), 1)})


def one_linear(rows: int, dims: tuple[int, int], dense: int = 0, **options: Any) -> Sample:
    sample = sparse_linear(rows, dims, 2, 1, dense=dense, **options)
    return Sample(sample.label, {"x": sample["x"], "weight": sample["weight"][0], "bias": sample["bias"][0]})


def one_linear_samples() -> Iterator[Sample]:
    dims = ((7, 5), (1, 1), (31, 13), (64, 31), (128, 64), (16, 8))
    yield from (one_linear(rows, shape) for rows, shape in zip(SIZES, dims, strict=True))
    plain = one_linear(63, (40, 9), dense=3)
    yield Sample("no-bias", {**plain.args, "bias": None})
    yield plain
    yield one_linear(63, (300, 9), density=0.05, binary=True)
    yield one_linear(5, (11, 3), density=0.0)


def norm(
    rows: int, dim: int, experts: int, k: int, gate: bool = True, used: int | None = None, eps: float = 1e-5
) -> Sample:
    """`used`: how many of the experts have slots."""
    label = f"N{rows}-D{dim}-E{experts}-k{k}" + "-gate" * gate + (f"-used{used}" if used else "")
    random = Random("expert_norm " + label)
    args = {
        "y": random.normal(rows, k, dim),
        "index": random.distinct(rows, used or experts, k),
        "weight": random.normal(experts, dim),
        "bias": random.normal(experts, dim),
        "running_mean": random.normal(experts, dim),
        "running_var": random.normal(experts, dim).square() + 0.5,
        "gate": random.gate(rows, k) if gate else None,
        "eps": eps,
    }
    return Sample(label, args)


def norm_samples() -> Iterator[Sample]:
    # Not 1e-5: where an expert has two nearly equal slots, their gradient is as large as 1 / sqrt(eps).
    for rows, dim, k in zip(SIZES, (1, 7, 31, 150, 13, 64), (1, 2, 8, 4, 2, 3), strict=True):
        yield norm(rows, dim, 8, k, eps=0.1)
        yield norm(rows, dim, 8, k, gate=False, eps=0.1)
    yield norm(63, 5, 17, 1, used=3, eps=0.1)  # most experts have no slots
    yield norm(3, 5, 17, 1, eps=0.1)  # most slots are alone with their expert
    yield norm(700, 1, 1, 1, eps=0.1)
    far = norm(63, 5, 3, 2, eps=0.1)
    yield Sample("mean-far-from-zero", {**far.args, "y": far["y"] + 100})


def memory(rows: int, dim: int, experts: int, k: int, **options: Any) -> Sample:
    label = f"N{rows}-D{dim}-E{experts}-k{k}" + "".join(f"-{name}{value}" for name, value in options.items())
    random = Random("memory_update " + label)
    memory, x = random.away_from_zero(experts, dim), random.away_from_zero(rows, dim)
    routing = {"gate": random.gate(rows, k), "index": random.distinct(rows, experts, k)}
    return Sample(label, {"memory": memory, "x": x, **routing, **options})


def memory_samples() -> Iterator[Sample]:
    for rows, dim, k in zip(SIZES, WIDTHS, (1, 2, 8, 3, 2, 3), strict=True):
        yield memory(rows, dim, 8, k)
    yield memory(63, 7, 4, 2, normalize=False)
    yield from (memory(9, 5, 3, 1, rate=rate) for rate in (0.0, 0.5, 1.0))
    yield memory(3, 5, 17, 1)
    far = memory(63, 5, 3, 2)
    yield Sample("gates-far-apart", {**far.args, "gate": 300 * (far["gate"] - 0.5)})


# ---- graphs


def aggregate(kind: str, nodes: int, dim: int, hops: int = 1, weighted: bool = True) -> Sample:
    label = f"{kind}-N{nodes}-D{dim}-hops{hops}" + "-weights" * weighted
    random = Random("aggregate " + label)
    graph = random.graph(kind, nodes, weighted)
    return Sample(label, {"graph": graph, "x": random.normal(nodes, dim), "hops": hops})


def aggregate_samples() -> Iterator[Sample]:
    for nodes, dim in zip(SIZES, WIDTHS, strict=True):
        yield aggregate("random", nodes, dim)
    for kind in GRAPHS:
        yield aggregate(kind, 63, 5, hops=2)
        yield aggregate(kind, 63, 37, weighted=False)
    yield aggregate("hub", 2000, 17)
    yield aggregate("random", 2, 300, hops=2, weighted=False)


def edge(kind: str, nodes: int, dim: int, types: int = 60, weighted: bool = True) -> Sample:
    label = f"{kind}-N{nodes}-D{dim}-T{types}" + "-weights" * weighted
    random = Random("edge_aggregate " + label)
    graph = random.graph(kind, nodes, weighted, types)
    return Sample(label, {"graph": graph, "x": random.normal(nodes, dim), "edge_table": random.normal(types, dim)})


def edge_samples() -> Iterator[Sample]:
    for nodes, dim in zip(SIZES, WIDTHS, strict=True):
        yield edge("random", nodes, dim)
    for kind in GRAPHS:
        yield edge(kind, 63, 5, types=1)
        yield edge(kind, 63, 37, types=7, weighted=False)
    yield edge("hub", 2000, 3)


def routed(
    kind: str, nodes: int, dim: int, experts: int = 3, k: int = 2, first: int = 0, shared: bool = False, types: int = 7
) -> Sample:
    label = f"{kind}-N{nodes}-D{dim}-F{experts}-k{k}-first{first}" + "-shared" * shared
    random = Random("routed_edge_aggregate " + label)
    total = experts + first + 2  # experts before and after the range given here: their slots stay zero
    args = {
        "graph": random.graph(kind, nodes, weighted=not shared, num_edge_types=types),
        "x": random.normal(nodes, dim) if shared else random.normal(experts, nodes, dim),
        "edge_table": random.normal(experts, types, dim),
        "index": random.distinct(nodes, total, k),
        "first_expert": first,
    }
    return Sample(label, args)


def routed_samples() -> Iterator[Sample]:
    for nodes, dim in zip(SIZES, (1, 7, 31, 17, 13, 8), strict=True):
        yield routed("random", nodes, dim, first=2)
        yield routed("random", nodes, dim, shared=True)
    for kind in GRAPHS:
        yield routed(kind, 63, 5, experts=4, k=4, types=60)
    yield from (routed("hub", 63, 3, experts=1, k=k) for k in (1, 3))


def mixture(kind: str, nodes: int, dim: int, norm: bool = True, onto: bool = True, **options: Any) -> Sample:
    base = routed(kind, nodes, dim, **options)
    label = f"{base.label}" + "-norm" * norm + "-onto" * onto
    random, experts = Random("routed_edge_mixture " + label), base["edge_table"].shape[0]
    args = {
        **base.args,
        "gate": random.gate(*base["index"].shape),
        "scale": random.normal(experts, dim) if norm else None,
        "shift": random.normal(experts, dim) if norm else None,
        "onto": random.normal(nodes, dim) if onto else None,
    }
    return Sample(label, args)


def mixture_samples() -> Iterator[Sample]:
    for nodes, dim in zip(SIZES, (1, 7, 31, 17, 13, 8), strict=True):
        yield mixture("random", nodes, dim, first=2)
        yield mixture("random", nodes, dim, norm=False, onto=False, shared=True)
    for kind in GRAPHS:
        yield mixture(kind, 63, 5, experts=4, k=4, types=60)
    yield from (mixture("hub", 63, 3, experts=1, k=k, onto=False) for k in (1, 3))


def two_hop(kind: str, nodes: int, types: int = 0, **options: bool) -> Sample:
    label = f"{kind}-N{nodes}-T{types}" + "".join(f"-{name}{value}" for name, value in options.items())
    graph = Random("two_hop " + label).graph(kind, nodes, num_edge_types=types)
    return Sample(label, {"graph": graph, **options})


def two_hop_samples() -> Iterator[Sample]:
    yield from (two_hop("random", nodes, types) for nodes in SIZES for types in (0, 60))
    for kind in GRAPHS:
        yield two_hop(kind, 63, 3, exclude_self=False)
        yield two_hop(kind, 63, exclude_one_hop=False)
        yield two_hop(kind, 20, 2, exclude_self=False, exclude_one_hop=False)
    yield two_hop("hub", 257, 5)


def walk(kind: str, nodes: int, starts: int, length: int, seed: int) -> Sample:
    label = f"{kind}-N{nodes}-S{starts}-L{length}-seed{seed}"
    random = Random("walk " + label)
    graph = random.graph(kind, nodes)
    return Sample(label, {"graph": graph, "starts": random.integers(nodes, starts), "length": length, "seed": seed})


def walk_samples() -> Iterator[Sample]:
    yield from (walk("random", nodes, nodes, 10, nodes) for nodes in SIZES)
    yield from (walk(kind, 63, 100, 5, 7) for kind in GRAPHS)
    yield from (
        walk("hub", 30, 64, length, seed) for length, seed in ((1, 0), (2, -1), (40, 2**63 - 1), (3, 2**64 + 5))
    )
