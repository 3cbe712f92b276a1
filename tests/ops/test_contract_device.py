"""What every operator promises on a GPU beside its results: it waits for nothing, runs on any stream and in a graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from .opinfo import OPS
from .opspec import OpSpec
from .samples import Sample, assert_identical, outputs

# The others need a size that only the device knows.
STATIC = [spec for spec in OPS if spec.static_shape]


def everything(spec: OpSpec, sample: Sample, but: str = "nothing") -> dict[str, Tensor]:
    """Outputs and gradients of one call; gradients of all paths ``but`` one that begin so."""
    leaves = {path: leaf for path, leaf in spec.leaves(sample).items() if not path.startswith(but)}
    results = outputs(spec.public(sample.replace(leaves)))
    wanted = [value for value in results.values() if value.requires_grad]
    found = {name: value.detach() for name, value in results.items()}
    if wanted:
        gradients = torch.autograd.grad(wanted, list(leaves.values()), [torch.ones_like(value) for value in wanted])
        found |= {f"gradient of {path}": value for path, value in zip(leaves, gradients, strict=True)}
    return found


@contextmanager
def no_waiting() -> Iterator[None]:
    """torch raises where the host would wait for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("spec", STATIC, ids=str)
def test_the_host_waits_for_nothing(spec: OpSpec, gpu: torch.device) -> None:
    spec.need_compiled()
    sample = spec.rows(257).to(torch.float32).on(gpu)
    if "graph" in sample.args:
        sample["graph"].transpose()  # looks at the columns once, and is kept: so no graph with other weights here
    want = everything(spec, sample, but="graph")
    with no_waiting():
        got = everything(spec, sample, but="graph")
    assert_identical(got, want, f"{spec} without waiting")


@pytest.mark.parametrize("spec", STATIC, ids=str)
def test_a_recorded_graph_repeats_the_call_on_other_numbers(spec: OpSpec, gpu: torch.device) -> None:
    spec.need_compiled()
    sample = spec.rows(257).to(torch.float32).on(gpu)
    if "graph" in sample.args:
        sample["graph"].transpose()
    side = torch.cuda.Stream(gpu)
    side.wait_stream(torch.cuda.current_stream(gpu))
    with torch.cuda.stream(side), torch.no_grad():
        spec.public(sample)
    torch.cuda.current_stream(gpu).wait_stream(side)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded), torch.no_grad():
        got = outputs(spec.public(sample))
    for path, tensor in sample.tensors().items():
        if tensor.is_floating_point() and path != "graph.weight":  # what is derived from weights is kept
            tensor.copy_(tensor.flip(0))
    recorded.replay()
    torch.cuda.synchronize()
    with torch.no_grad():
        assert_identical(got, outputs(spec.public(sample)), f"{spec} replayed")


@pytest.mark.parametrize("spec", OPS, ids=str)
def test_a_stream_of_ones_own_gives_the_same(spec: OpSpec, gpu: torch.device) -> None:
    sample = spec.rows(257).to(torch.float32).on(gpu)
    want = everything(spec, sample)
    side = torch.cuda.Stream(gpu)
    side.wait_stream(torch.cuda.current_stream(gpu))
    with torch.cuda.stream(side):
        got = everything(spec, sample)
    torch.cuda.current_stream(gpu).wait_stream(side)
    assert_identical(got, want, f"{spec} on a stream of its own")


@pytest.mark.parametrize("spec", OPS, ids=str)
def test_the_current_device_does_not_matter(spec: OpSpec, gpu: torch.device) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    sample = spec.rows(63).to(torch.float32)
    here, there = (everything(spec, sample.on(torch.device("cuda", index))) for index in (0, 1))
    assert all(value.device.index == 1 for value in there.values())
    assert_identical({name: value.to("cuda:0") for name, value in there.items()}, here, f"{spec} on the other device")
