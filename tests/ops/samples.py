"""A Sample is one set of arguments of an operator; its tensors can be reached, replaced and cast by path.

Paths name tensors inside arguments: "x", "graph.weight", "plan.order". Samples are made in float64 and cast down, so
that the operator and its float64 reference see the same numbers.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gmoe_ext import _native
from gmoe_ext.feature_rows import FeatureRows
from gmoe_ext.graph import Graph
from gmoe_ext.plan import ExpertPlan


def emulated() -> bool:
    """Whether CPU tensors are those of an emulated device, which is slow."""
    return _native.available and _native.build_info()["cpu"] == "emulated"


def notes_indices(device: torch.device) -> bool:
    """Whether the operators are a device's: they note the position of a bad index, and raise when somebody looks."""
    return device.type == "cuda" or emulated()


def settle(device: torch.device) -> None:
    """Wait for a device, and raise what its operators have noted."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    _native.raise_index_faults(device)


_GRAPH_FIELDS = ("offsets", "columns", "weight", "edge_type")
_ROW_FIELDS = ("offsets", "columns", "values", "dense")


@dataclass(frozen=True)
class Sample:
    """Arguments of one call, by the parameter names of the public function."""

    label: str
    args: Mapping[str, Any]

    def __repr__(self) -> str:
        return self.label

    def __getitem__(self, path: str) -> Any:
        argument, _, member = path.partition(".")
        return getattr(self.args[argument], member) if member else self.args[argument]

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its path."""
        found: dict[str, Tensor] = {}
        for name, value in self.args.items():
            if isinstance(value, Tensor):
                found[name] = value
            elif isinstance(value, Graph | FeatureRows):
                fields = _GRAPH_FIELDS if isinstance(value, Graph) else _ROW_FIELDS
                members = {f"{name}.{field}": getattr(value, field) for field in fields}
                found.update({path: tensor for path, tensor in members.items() if tensor is not None})
            elif isinstance(value, ExpertPlan):
                found.update({f"{name}.offsets": value.offsets, f"{name}.order": value.order})
        return found

    def replace(self, values: Mapping[str, Any]) -> Sample:
        """The same sample with other tensors (by path) or other arguments (by name)."""
        args = dict(self.args)
        members: dict[str, dict[str, Any]] = {}
        for path, value in values.items():
            argument, _, member = path.partition(".")
            if member:
                members.setdefault(argument, {})[member] = value
            else:
                args[argument] = value
        for argument, changed in members.items():
            args[argument] = _rebuild(args[argument], changed)
        return Sample(self.label, args)

    def map(self, change: Callable[[str, Tensor], Tensor]) -> Sample:
        """Every tensor replaced by change(path, tensor)."""
        return self.replace({path: change(path, tensor) for path, tensor in self.tensors().items()})

    def to(self, dtype: torch.dtype) -> Sample:
        """Floating tensors cast; weights of edges and stored values are kept in the type sums are kept in."""
        accumulator = torch.float32 if dtype == torch.bfloat16 else dtype

        def cast(path: str, tensor: Tensor) -> Tensor:
            wanted = accumulator if path in ("graph.weight", "x.values") else dtype
            return tensor.to(wanted) if tensor.is_floating_point() else tensor

        return self.map(cast)

    def on(self, device: torch.device) -> Sample:
        return self.map(lambda _, tensor: tensor.to(device))


def _rebuild(value: Any, changed: Mapping[str, Any]) -> Any:
    if isinstance(value, ExpertPlan):
        return value._replace(**changed)
    if isinstance(value, FeatureRows):
        parts = {field: changed.get(field, getattr(value, field)) for field in _ROW_FIELDS}
        return FeatureRows(num_sparse=value.num_sparse, **parts)
    fields = {field: changed.get(field, getattr(value, field)) for field in _GRAPH_FIELDS}
    return Graph(value.num_nodes, **fields, num_edge_types=value.num_edge_types)


def outputs(result: Any) -> dict[str, Tensor]:
    """The tensors of an operator's result by name."""
    if isinstance(result, Tensor):
        return {"out": result}
    if isinstance(result, Graph):
        return {field: getattr(result, field) for field in _GRAPH_FIELDS if getattr(result, field) is not None}
    names = getattr(result, "_fields", None) or [f"out{i}" for i in range(len(result))]
    return {name: value for name, value in zip(names, result, strict=True) if isinstance(value, Tensor)}


class Random:
    """Seeded random inputs; the seed comes from a label, so that adding a sample does not change another."""

    def __init__(self, label: str) -> None:
        self.generator = torch.Generator().manual_seed(zlib.crc32(label.encode()))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def away_from_zero(self, *shape: int) -> Tensor:
        """Like normal, but no value is small: a norm of one tiny number would make every gradient huge."""
        value = self.normal(*shape)
        return value + torch.where(value < 0, -0.5, 0.5)

    def integers(self, bound: int, *shape: int) -> Tensor:
        return torch.randint(max(bound, 1), shape, generator=self.generator)

    def distinct(self, rows: int, bound: int, k: int) -> Tensor:
        """k different integers below bound in each row, as a router chooses them."""
        return torch.rand(rows, bound, generator=self.generator).argsort(dim=1)[:, :k].contiguous()

    def gate(self, rows: int, k: int) -> Tensor:
        return torch.softmax(self.normal(rows, k), dim=1)

    def feature_rows(self, rows: int, columns: int, density: float, binary: bool = False) -> FeatureRows:
        """Rows of which about so many values are not zero."""
        kept = torch.rand(rows, columns, generator=self.generator) < density
        values = torch.ones(rows, columns, dtype=torch.float64) if binary else self.away_from_zero(rows, columns)
        return FeatureRows.from_dense(torch.where(kept, values, 0.0).to(torch.float32 if binary else torch.float64))

    def graph(self, kind: str, num_nodes: int, weighted: bool = False, num_edge_types: int = 0) -> Graph:
        """A graph of a named kind: edgeless, random, isolated, hub, duplicates or loops."""
        edges = self._edges(kind, num_nodes)
        num_edges = edges.shape[1]
        weight = self.normal(num_edges) if weighted else None
        edge_type = self.integers(num_edge_types, num_edges) if num_edge_types else None
        return Graph.from_edge_index(edges, num_nodes, weight, edge_type, num_edge_types or None)

    def _edges(self, kind: str, num_nodes: int) -> Tensor:
        if kind == "edgeless" or num_nodes == 0:
            return torch.empty(2, 0, dtype=torch.int64)
        edges = self.integers(num_nodes, 2, 4 * num_nodes)
        if kind == "isolated":  # only every third node has edges
            edges = edges // 3 * 3
        elif kind == "hub":  # one node hears everybody and is heard by everybody
            hub = torch.full((num_nodes,), num_nodes // 2)
            everybody = torch.arange(num_nodes)
            edges = torch.cat([edges, torch.stack([everybody, hub]), torch.stack([hub, everybody])], dim=1)
        elif kind == "duplicates":
            edges = torch.cat([edges, edges, edges[:, : num_nodes // 2]], dim=1)
        elif kind == "loops":
            edges = torch.cat([edges, torch.arange(num_nodes).expand(2, -1)], dim=1)
        else:
            assert kind in ("random",), kind
        return edges


# Error allowed beside the float64 reference, relative to the value and to the largest value of the tensor.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}


def assert_close(got: Tensor, want: Tensor, what: str, tolerance: float) -> None:
    """got against the float64 truth: shape, and |got - want| <= tolerance (|want| + max(1, largest |want|))."""
    assert got.shape == want.shape, f"{what}: expected shape {list(want.shape)}, got {list(got.shape)}"
    if not got.is_floating_point():
        assert torch.equal(got.cpu(), want.cpu()), f"{what}: integers differ"
        return
    got, want = got.detach().double().cpu(), want.detach().double().cpu()
    finite = want[want.isfinite()]
    scale = max(1.0, finite.abs().max().item()) if finite.numel() else 1.0
    torch.testing.assert_close(
        got, want, rtol=tolerance, atol=tolerance * scale, equal_nan=True, msg=lambda text: f"{what}: {text}"
    )


def assert_identical(got: Mapping[str, Tensor], want: Mapping[str, Tensor], what: str) -> None:
    """Same names, shapes, dtypes and bits (NaN equals NaN)."""
    assert got.keys() == want.keys(), f"{what}: outputs {sorted(got)} against {sorted(want)}"
    for name, value in got.items():
        expected = want[name]
        assert (value.shape, value.dtype) == (expected.shape, expected.dtype), f"{what}: '{name}' changed its kind"
        same = (value == expected) | ((value != value) & (expected != expected))
        assert same.all(), f"{what}: '{name}' differs in {int((~same).sum())} of {math.prod(value.shape)} values"
