"""Every operator computes what its float64 reference computes: all sizes, dtypes, graphs, and any memory layout."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from .opinfo import OPS
from .opspec import OpSpec
from .samples import TOLERANCE, Random, Sample, assert_close, assert_identical, outputs

FLOATING_OPS = [spec for spec in OPS if spec.floating]
INTEGER_OPS = [spec for spec in OPS if not spec.floating]
GRAPH_OPS = [spec for spec in OPS if "graph" in spec.rows(2).args]


def assert_agrees(spec: OpSpec, sample: Sample, tolerance: float) -> None:
    """The operator's result beside the reference on the same numbers in float64."""
    got, want = outputs(spec.public(sample)), outputs(spec.truth(sample.to(torch.float64)))
    assert got.keys() == want.keys()
    if spec.scores is not None:
        chosen = next(name for name, value in got.items() if not value.is_floating_point())
        _assert_ranks(got.pop(chosen), want.pop(chosen), spec.scores(sample), f"{spec} on {sample}")
    for name, value in got.items():
        assert_close(value, want[name], f"{spec} on {sample}, output '{name}'", tolerance)


def _assert_ranks(got: Tensor, want: Tensor, scores: Tensor, what: str) -> None:
    """The same choices as the reference, except between scores too close for float32 to tell apart."""
    assert got.dtype == torch.int64 and got.shape == want.shape, what
    assert (got.sort(dim=1).values.diff(dim=1) > 0).all(), f"{what}: an expert is chosen twice"
    got, want, scores = got.cpu(), want.cpu(), scores.cpu()
    gap = (scores.gather(1, got) - scores.gather(1, want)).abs()
    assert (gap <= 1e-6 * scores.abs().amax().clamp_min(1)).all() if gap.numel() else True, f"{what}: wrong choice"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("spec", FLOATING_OPS, ids=str)
def test_equals_the_float64_reference(spec: OpSpec, dtype: torch.dtype, device: torch.device) -> None:
    for sample in spec.samples():
        assert_agrees(spec, sample.to(dtype).on(device), TOLERANCE[dtype])


@pytest.mark.parametrize("spec", INTEGER_OPS, ids=str)
def test_integers_equal_the_reference_exactly(spec: OpSpec, device: torch.device) -> None:
    for sample in spec.samples():
        placed = sample.on(device)
        assert_identical(outputs(spec.public(placed)), outputs(spec.truth(placed)), f"{spec} on {sample}")


@pytest.mark.parametrize("spec", FLOATING_OPS, ids=str)
def test_bfloat16_loses_at_most_twice_what_torch_loses(spec: OpSpec, device: torch.device) -> None:
    sample = spec.rows(257).to(torch.bfloat16).on(device)
    truth = outputs(spec.truth(sample.to(torch.float64)))
    plain, got = outputs(spec.truth(sample)), outputs(spec.public(sample))
    for name in spec.wide:  # judged by the float32 tests
        assert got[name].dtype == torch.float32
    for name, want in truth.items():
        if want.is_floating_point() and name not in spec.wide:
            assert got[name].dtype == torch.bfloat16
            error, rival = ((value[name].double() - want).norm() / want.norm() for value in (got, plain))
            assert error <= 2 * rival, f"'{name}': relative error {error:.2e}, plain PyTorch {rival:.2e}"


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def _strided(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, tensor + 1], dim=-1)[..., 0]


def _shifted(tensor: Tensor) -> Tensor:
    """Starts in the middle of a vector register's worth of memory."""
    return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)


def _expanded(tensor: Tensor) -> Tensor:
    return tensor[:1].expand(tensor.shape)


@pytest.mark.parametrize("layout", [_transposed, _strided, _shifted, _expanded])
@pytest.mark.parametrize("spec", OPS, ids=str)
def test_memory_layout_does_not_matter(spec: OpSpec, layout: Callable[[Tensor], Tensor], device: torch.device) -> None:
    spec.need_compiled()  # bit for bit is their promise
    sample = spec.rows(63).to(torch.float32).on(device)
    for path, tensor in sample.tensors().items():
        # An expanded plan or row range is not a layout of a valid one.
        if layout is _expanded and not tensor.is_floating_point():
            continue
        odd = layout(tensor)
        got = outputs(spec.public(sample.replace({path: odd})))
        want = outputs(spec.public(sample.replace({path: odd.clone(memory_format=torch.contiguous_format)})))
        assert_identical(got, want, f"{spec}: '{path}' {layout.__name__}")


@pytest.mark.parametrize("spec", GRAPH_OPS, ids=str)
def test_equals_the_reference_on_any_graph(spec: OpSpec, device: torch.device) -> None:
    # The other contract tests run without hypothesis, as on a machine lent for its GPU.
    hypothesis = pytest.importorskip("hypothesis")
    from tests.graphs import graphs

    base = spec.rows(2)
    typed = "edge_table" in base.args or spec.name == "two_hop_graph"
    seeds = hypothesis.strategies.integers(0, 999)

    @hypothesis.settings(max_examples=25, derandomize=True)
    @hypothesis.given(graph=graphs(num_edge_types=3 if typed else 0, dtype=torch.float64), seed=seeds)
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


@pytest.mark.parametrize("spec", GRAPH_OPS, ids=str)
def test_graph_index_width_does_not_matter(spec: OpSpec, device: torch.device) -> None:
    sample = spec.rows(257).to(torch.float32).on(device)
    paths = [path for path in ("graph.columns", "graph.edge_type") if path in sample.tensors()]
    got = [
        outputs(spec.public(sample.replace({path: sample[path].to(width) for path in paths})))
        for width in (torch.int32, torch.int64)
    ]
    for narrow, wide in zip(got[0].values(), got[1].values(), strict=True):
        assert torch.equal(narrow.long(), wide.long()) if not wide.is_floating_point() else torch.equal(narrow, wide)


@pytest.mark.parametrize("spec", [spec for spec in OPS if spec.indices], ids=str)
def test_int32_arguments_are_taken_or_refused_by_name(spec: OpSpec, device: torch.device) -> None:
    sample = spec.rows(63).on(device)
    for path in spec.indices or ():
        if path.startswith(("graph.", "plan.")):
            continue
        narrow = sample.replace({path: sample[path].int()})
        try:
            got = outputs(spec.public(narrow))
        except TypeError as error:
            assert f"gmoe::{spec.name}" in str(error) and f"'{path}'" in str(error)
        else:
            assert_identical(got, outputs(spec.public(sample)), f"{spec}: '{path}' as int32")


@pytest.mark.parametrize("spec", [spec for spec in OPS if spec.scores is not None], ids=str)
def test_ties_go_to_the_lower_expert(spec: OpSpec, device: torch.device) -> None:
    for experts in (1, 4, 17, 64):
        equal = {"x": torch.ones(3, 5), "memory": torch.ones(experts, 5), "logits": torch.ones(3, experts)}
        equal |= dict.fromkeys(("clean", "sigma", "noise"), equal["logits"])
        base = spec.rows(2)
        for k in {1, experts // 2, experts} - {0}:
            tied = base.replace({**{path: equal[path] for path in base.tensors()}, "k": k}).on(device)
            gate, index, *_ = spec.public(tied)
            assert index.tolist() == [list(range(k))] * 3
            torch.testing.assert_close(gate, torch.full_like(gate, 1 / k))


@pytest.mark.parametrize("spec", [spec for spec in OPS if spec.scores is not None], ids=str)
def test_ties_keep_their_order_below_a_better_expert(spec: OpSpec, device: torch.device) -> None:
    experts = 9
    logits, memory = torch.ones(3, experts), torch.eye(5)[0].repeat(experts, 1)
    logits[:, -1], memory[-1] = 2, 1  # the last expert is best, the others are equal
    rows = {"x": torch.ones(3, 5), "memory": memory, "clean": logits, "logits": logits}
    rows |= dict.fromkeys(("sigma", "noise"), torch.ones(3, experts))
    base = spec.rows(2)
    tied = base.replace({**{path: rows[path] for path in base.tensors()}, "k": 5}).on(device)
    assert spec.public(tied)[1].tolist() == [[experts - 1, 0, 1, 2, 3]] * 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("spec", [spec for spec in OPS if spec.row_of], ids=str)
def test_nan_and_inf_reach_what_depends_on_them_and_nothing_else(
    spec: OpSpec, value: float, device: torch.device
) -> None:
    clean = spec.rows(63).to(torch.float32).on(device)
    poisoned_rows = clean[spec.row_of].clone()
    poisoned_rows[5] = value
    poisoned = clean.replace({spec.row_of: poisoned_rows})
    got, before, want = (outputs(call) for call in (spec.public(poisoned), spec.public(clean), spec.truth(poisoned)))
    for name, result in got.items():
        if spec.scores is not None:
            others = torch.arange(63) != 5
            assert torch.equal(result[others], before[name][others])
            if not result.is_floating_point():
                assert result[5].tolist() == want[name][5].tolist()
                continue
        torch.testing.assert_close(result, want[name], equal_nan=True)
        if value != value:
            assert want[name].isnan().any(), "the sample shows nothing: no output depends on the poisoned row"
