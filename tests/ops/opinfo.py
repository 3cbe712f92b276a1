"""One OpSpec per operator: what the generic contract tests need to know about it.

A new operator is added to OPS and gets every contract test.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gmoe_ext.plan import ExpertPlan

from . import inputs
from .opspec import BadCase, OpSpec
from .samples import Sample


def _shape(argument: str, change: Callable[[Tensor], Tensor], label: str) -> BadCase:
    return BadCase(f"{argument}-{label}", lambda s: {argument: change(s[argument])}, ValueError, argument)


def _dtype(argument: str, dtype: torch.dtype) -> BadCase:
    return BadCase(f"{argument}-{dtype}", lambda s: {argument: s[argument].to(dtype)}, TypeError, argument)


def _value(argument: str, value: object) -> BadCase:
    return BadCase(f"{argument}-{value}", lambda s: {argument: value}, ValueError, argument)


def _flat(tensor: Tensor) -> Tensor:
    return tensor.flatten()


def _wider(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor[..., :1]], dim=-1)


def _taller(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor[:1]])


def _nodes(sample: Sample) -> int:
    return sample["graph"].num_nodes


def _types(sample: Sample) -> int:
    return sample["edge_table"].shape[-2]


_COLUMNS = {"graph.columns": _nodes}
# What operators that route by cosines refuse; their samples have 8 experts.
_BAD_ROUTING = (
    _shape("x", _flat, "flat"),
    _shape("memory", _flat, "flat"),
    _shape("memory", _wider, "wider"),
    _dtype("x", torch.int64),
    _dtype("memory", torch.bfloat16),
    _value("k", 0),
    _value("k", 9),
)
# What operators over typed edges refuse.
_BAD_MESSAGES = (
    _shape("x", _flat, "flat"),
    _shape("x", _taller, "taller"),
    _shape("edge_table", _flat, "flat"),
    _shape("edge_table", _wider, "wider"),
    _dtype("x", torch.int64),
    _dtype("edge_table", torch.bfloat16),
    BadCase("no-edge-types", lambda s: {"graph.edge_type": None}, ValueError, "graph"),
)
_SHORT_PLAN = BadCase("plan-of-other-experts", lambda s: {"plan": _more_experts(s["plan"])}, ValueError, "weight")


def _more_experts(plan: ExpertPlan) -> ExpertPlan:
    return plan._replace(offsets=torch.cat([plan.offsets, plan.offsets[-1:]]))


OPS = (
    OpSpec(
        "cosine_topk",
        inputs.cosine_samples,
        lambda rows: inputs.cosine(rows, 31, 8, 3),
        differentiable=("x",),
        detached=("memory",),
        scores=inputs.cosine_scores,
        bad=_BAD_ROUTING,
        row_of="x",
        autocast=torch.float32,
    ),
    OpSpec(
        "cosine_topk_update",
        inputs.cosine_update_samples,
        lambda rows: inputs.cosine_update(rows, 31, 8, 3),
        differentiable=("x",),
        detached=("memory",),
        scores=inputs.cosine_scores,
        bad=(*_BAD_ROUTING, _value("rate", 1.5), _value("rate", -0.1)),
        autocast=torch.float32,
    ),
    OpSpec(
        "topk_softmax",
        inputs.topk_samples,
        lambda rows: inputs.topk(rows, 17, 4),
        differentiable=("logits",),
        scores=lambda sample: sample["logits"].double(),
        bad=(_shape("logits", _flat, "flat"), _dtype("logits", torch.int64), _value("k", 0), _value("k", 18)),
        row_of="logits",
        autocast=torch.float32,
    ),
    OpSpec(
        "noisy_topk",
        inputs.noisy_samples,
        lambda rows: inputs.noisy(rows, 17, 4),
        differentiable=("clean", "sigma"),
        detached=("noise",),
        scores=inputs.noisy_scores,
        bad=(
            _shape("clean", _flat, "flat"),
            _shape("sigma", _wider, "wider"),
            _shape("noise", _taller, "taller"),
            _dtype("clean", torch.int64),
            _dtype("sigma", torch.bfloat16),
            _dtype("noise", torch.bfloat16),
            _value("k", 0),
            _value("k", 18),
        ),
        wide=("out2", "out3"),
        autocast=torch.float32,
    ),
    OpSpec(
        "dropout",
        inputs.dropout_samples,
        lambda rows: inputs.drop(rows, 31, 0.5, 3),
        differentiable=("x",),
        second_derivative=("x",),
        bad=(
            _shape("x", _flat, "flat"),
            _shape("seed", _wider, "wider"),
            _dtype("x", torch.int64),
            _dtype("seed", torch.int32),
            _value("rate", 1.0),
            _value("rate", -0.1),
            _value("slots", 0),
        ),
        row_of="x",
    ),
    OpSpec(
        "expert_plan",
        inputs.plan_samples,
        lambda rows: inputs.plan(rows, 8, 3),
        bad=(
            _shape("index", _flat, "flat"),
            _shape("index", lambda t: t[:, :0], "no-slots"),
            _dtype("index", torch.float32),
            _value("num_experts", 0),
        ),
        indices={"index": lambda sample: sample["num_experts"]},
    ),
    OpSpec(
        "expert_linear",
        inputs.linear_samples,
        lambda rows: inputs.linear(rows, (31, 13), 8, 3, gate=True, source=rows // 2 + 2),
        differentiable=("x", "weight", "bias", "gate"),
        bad=(
            _shape("x", _flat, "flat"),
            _shape("x", _wider, "wider"),
            _shape("weight", _flat, "flat"),
            _shape("bias", _wider, "wider"),
            _shape("gate", _wider, "wider"),
            _shape("gate", _taller, "taller"),
            _shape("source", _taller, "taller"),
            _dtype("x", torch.int64),
            _dtype("weight", torch.bfloat16),
            _dtype("gate", torch.bfloat16),
            _dtype("source", torch.float32),
            _SHORT_PLAN,
        ),
        indices={
            "source": lambda sample: sample["x"].shape[0],
            "plan.order": lambda sample: sample["plan"].num_rows * sample["plan"].k,
        },
        row_of="x",
        autocast=torch.bfloat16,
    ),
    OpSpec(
        "sparse_expert_linear",
        inputs.sparse_linear_samples,
        lambda rows: inputs.sparse_linear(rows, (31, 13), 8, 3),
        differentiable=("weight", "bias", "gate", "scale"),
        bad=(
            _shape("weight", _flat, "flat"),
            _shape("bias", _wider, "wider"),
            _shape("index", _flat, "flat"),
            _shape("index", _taller, "taller"),
            _shape("gate", _wider, "wider"),
            _shape("scale", _taller, "taller"),
            BadCase("x-wider", lambda s: {"weight": s["weight"][:, :, 1:]}, ValueError, "x"),
            BadCase("x-dense", lambda s: {"x": s["x"].to_dense()}, TypeError, "x"),
            _dtype("weight", torch.int64),
            _dtype("gate", torch.bfloat16),
            _dtype("scale", torch.bfloat16),
            _dtype("index", torch.float32),
        ),
        indices={"x.columns": lambda sample: sample["x"].num_sparse, "index": lambda sample: sample["weight"].shape[0]},
        autocast=torch.float32,
    ),
    OpSpec(
        "sparse_linear",
        inputs.one_linear_samples,
        lambda rows: inputs.one_linear(rows, (31, 13)),
        differentiable=("weight", "bias"),
        second_derivative=("weight", "bias"),
        bad=(
            _shape("weight", _flat, "flat"),
            _shape("bias", _wider, "wider"),
            BadCase("x-wider", lambda s: {"weight": s["weight"][:, 1:]}, ValueError, "x"),
            BadCase("x-dense", lambda s: {"x": s["x"].to_dense()}, TypeError, "x"),
            _dtype("weight", torch.int64),
            _dtype("bias", torch.bfloat16),
        ),
        indices={"x.columns": lambda sample: sample["x"].num_sparse},
        runs_on="aggregate",
    ),
    OpSpec(
        "expert_norm",
        inputs.norm_samples,
        lambda rows: inputs.norm(rows, 31, 8, 3, eps=0.1),
        differentiable=("y", "weight", "bias", "gate"),
        detached=("running_mean", "running_var"),
        bad=(
            _shape("y", _flat, "flat"),
            _shape("index", _taller, "taller"),
            _shape("gate", _wider, "wider"),
            _shape("weight", _flat, "flat"),
            _shape("weight", _wider, "wider"),
            _shape("bias", _taller, "taller"),
            _shape("running_mean", _wider, "wider"),
            _shape("running_var", _flat, "flat"),
            _dtype("y", torch.int64),
            _dtype("index", torch.float32),
            _dtype("gate", torch.bfloat16),
            _dtype("bias", torch.bfloat16),
        ),
        indices={"index": lambda sample: sample["weight"].shape[0]},
        wide=("out1", "out2"),
        autocast=torch.float32,
    ),
    OpSpec(
        "memory_update",
        inputs.memory_samples,
        lambda rows: inputs.memory(rows, 31, 8, 3),
        detached=("memory", "x", "gate"),
        bad=(
            _shape("memory", _flat, "flat"),
            _shape("x", _wider, "wider"),
            _shape("x", _flat, "flat"),
            _shape("gate", _taller, "taller"),
            _shape("index", _wider, "wider"),
            _dtype("x", torch.bfloat16),
            _dtype("memory", torch.int64),
            _dtype("index", torch.float32),
            _value("rate", 1.5),
            _value("rate", -0.1),
        ),
        indices={"index": lambda sample: sample["memory"].shape[0]},
        autocast=torch.float32,
    ),
    OpSpec(
        "aggregate",
        inputs.aggregate_samples,
        lambda rows: inputs.aggregate("random", rows, 31, hops=2),
        differentiable=("x", "graph.weight"),
        second_derivative=("x", "graph.weight"),
        bad=(_shape("x", _flat, "flat"), _shape("x", _taller, "taller"), _dtype("x", torch.int64), _value("hops", 3)),
        indices=_COLUMNS,
        row_of="x",
    ),
    OpSpec(
        "edge_aggregate",
        inputs.edge_samples,
        lambda rows: inputs.edge("random", rows, 31, types=7),
        differentiable=("x", "edge_table", "graph.weight"),
        second_derivative=("graph.weight",),  # linear in it: its gradient does not depend on it
        bad=_BAD_MESSAGES,
        indices={**_COLUMNS, "graph.edge_type": _types},
        row_of="x",
    ),
    OpSpec(
        "routed_edge_aggregate",
        inputs.routed_samples,
        lambda rows: inputs.routed("random", rows, 13, first=1),
        differentiable=("x", "edge_table", "graph.weight"),
        second_derivative=("graph.weight",),  # linear in it: its gradient does not depend on it
        bad=(
            *_BAD_MESSAGES,
            _shape("index", _flat, "flat"),
            _shape("index", _taller, "taller"),
            _dtype("index", torch.float32),
        ),
        indices={**_COLUMNS, "graph.edge_type": _types},
    ),
    OpSpec(
        "routed_edge_mixture",
        inputs.mixture_samples,
        lambda rows: inputs.mixture("random", rows, 13, first=1),
        bad=(
            *_BAD_MESSAGES,
            _shape("index", _flat, "flat"),
            _shape("index", _taller, "taller"),
            _shape("gate", _wider, "wider"),
            _shape("scale", _wider, "wider"),
            _shape("shift", _flat, "flat"),
            _shape("onto", _taller, "taller"),
            _dtype("index", torch.float32),
            _dtype("gate", torch.bfloat16),
            _dtype("onto", torch.bfloat16),
            _value("scale", None),
        ),
        indices={**_COLUMNS, "graph.edge_type": _types},
    ),
    OpSpec(
        "two_hop_graph",
        inputs.two_hop_samples,
        lambda rows: inputs.two_hop("random", rows, 7),
        indices={**_COLUMNS, "graph.edge_type": lambda sample: sample["graph"].num_edge_types},
        static_shape=False,
    ),
    OpSpec(
        "random_walk",
        inputs.walk_samples,
        lambda rows: inputs.walk("random", rows, rows, 8, 5),
        bad=(_shape("starts", lambda t: t[None], "2-D"), _dtype("starts", torch.float32), _value("length", 0)),
        indices={**_COLUMNS, "starts": _nodes},
        followed=("graph.columns",),
    ),
)
