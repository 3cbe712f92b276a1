"""Every operator says what is wrong with its arguments, and a bad index is an error and never a crash."""

from __future__ import annotations

import doctest
import inspect
from typing import Any

import pytest
import torch

import gmoe_ext
from gmoe_ext import _native, ops, reference
from gmoe_ext.errors import GraphIndexError

from .opinfo import OPS
from .opspec import BadCase, OpSpec
from .samples import Sample, assert_identical, notes_indices, outputs, settle

INDEXED = [(spec, path) for spec in OPS for path in spec.indices or ()]


@pytest.fixture(params=["native", "reference"], autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The fallback must refuse what the compiled operators refuse."""
    if request.param == "reference":
        monkeypatch.setattr(_native, "available", False)
    elif not _native.available:
        pytest.skip("the compiled library is not built")
    return request.param


@pytest.mark.parametrize(
    ("spec", "bad"), [pytest.param(spec, bad, id=f"{spec}-{bad.label}") for spec in OPS for bad in spec.bad]
)
def test_a_wrong_argument_is_named(spec: OpSpec, bad: BadCase, device: torch.device) -> None:
    sample = spec.rows(6).to(torch.float32).on(device)
    with pytest.raises(bad.error) as caught:
        spec.public(sample.replace(bad.change(sample)))
    text = str(caught.value)
    assert text.startswith(f"gmoe::{spec.name}: expected '{bad.argument}'"), text
    assert ", got " in text, f"says what was expected but not what came: {text}"


def _error_of(spec: OpSpec, sample: Sample, device: torch.device) -> Exception | None:
    try:
        spec.public(sample)
        settle(device)
    except (GraphIndexError, RuntimeError) as error:
        return error
    return None


@pytest.mark.parametrize("learning", [False, True], ids=["inference", "learning"])
@pytest.mark.parametrize(("spec", "path"), [pytest.param(*pair, id=f"{pair[0]}-{pair[1]}") for pair in INDEXED])
def test_a_bad_index_is_an_error_and_the_process_lives(
    spec: OpSpec, path: str, learning: bool, device: torch.device, backend: str
) -> None:
    sample = spec.rows(63).to(torch.float32).on(device)
    before = outputs(spec.public(sample))
    if learning:
        sample = sample.replace(spec.leaves(sample))
    indices = sample[path]
    assert spec.indices is not None and indices.numel() > 40
    bound = spec.indices[path](sample)
    huge = torch.iinfo(indices.dtype).max
    argument = path.rpartition(".")[2]
    noted = backend == "native" and notes_indices(device)
    for value in (-1, bound, huge, -huge - 1):
        for position in (0, 37, indices.numel() - 1):
            bad = indices.clone()
            bad.view(-1)[position] = value
            error = _error_of(spec, sample.replace({path: bad}), device)
            if noted and (path in spec.followed or argument == "order") and not isinstance(error, GraphIndexError):
                # A device may not meet the index, and says of a plan only that it is none.
                assert path in spec.followed or f"gmoe::{spec.name}: expected '{argument}'" in str(error)
                continue
            assert isinstance(error, GraphIndexError), error
            # A device knows no value, but in learning the graph was transposed before, which looks at all of it.
            assert error.value == value or (noted and error.value is None), str(error)
            assert (error.argument, error.position, error.bound) == (argument, position, bound), str(error)
            name = spec.runs_on if noted and error.value is None and spec.runs_on else spec.name
            assert str(error).startswith(f"gmoe::{name}: index out of range: '{argument}'")
    after = {name: value.detach() for name, value in outputs(spec.public(sample)).items()}
    assert_identical(after, before, f"{spec} after bad indices")


@pytest.mark.parametrize("spec", [spec for spec in OPS if "graph" in spec.rows(2).args], ids=str)
def test_broken_offsets_are_an_error(spec: OpSpec, device: torch.device) -> None:
    """Raw calls see offsets that no Graph would hold; following them would read foreign memory."""
    sample = spec.rows(63).to(torch.float32).on(device)
    offsets = sample["graph.offsets"]
    for position, value in ((0, -5), (0, 1), (30, 10**12), (30, -1), (63, 10**12), (63, 0)):
        broken = offsets.clone()
        broken[position] = value
        with pytest.raises((ValueError, IndexError, RuntimeError), match=rf"gmoe::{spec.name}.*offsets"):
            spec.public(sample.replace({"graph.offsets": broken}))
            settle(device)


@pytest.mark.parametrize("spec", OPS, ids=str)
def test_signature_equals_the_reference(spec: OpSpec) -> None:
    public, truth = (inspect.signature(getattr(package, spec.name)) for package in (ops, reference))
    assert public == truth


@pytest.mark.parametrize("spec", OPS, ids=str)
def test_docstring_is_complete_and_its_example_runs(spec: OpSpec) -> None:
    function = getattr(ops, spec.name)
    text = inspect.getdoc(function) or ""
    for part in ("Args:", "Returns:", "Raises:", "Deterministic:", "Examples:"):
        assert part in text, f"the docstring of ops.{spec.name} has no '{part}'"
    names: dict[str, Any] = {name: getattr(ops, name) for name in ops.__all__}
    names.update(torch=torch, Graph=gmoe_ext.Graph, FeatureRows=gmoe_ext.FeatureRows)
    (example,) = doctest.DocTestFinder(recurse=False).find(function, spec.name, globs=names)
    assert example.examples and doctest.DocTestRunner().run(example).failed == 0
