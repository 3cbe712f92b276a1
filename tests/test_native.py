"""The compiled library is found, refused with a reason and a fix, or replaced by the reference with a warning."""

from __future__ import annotations

import importlib
import pickle
import warnings
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

import gmoe_ext
from gmoe_ext import _native
from gmoe_ext.errors import GraphIndexError, NativeError
from gmoe_ext.ops import _dispatch


@pytest.fixture(autouse=True)
def no_wishes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GMOE_EXT_REQUIRE_NATIVE", raising=False)
    monkeypatch.delenv("GMOE_EXT_BACKEND", raising=False)


@pytest.fixture
def not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "find_spec", lambda name: None)


@pytest.fixture
def built_for_another_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise ImportError("undefined symbol: aoti_torch_of_tomorrow")

    monkeypatch.setattr(_native, "find_spec", lambda name: ModuleSpec(name, None))
    monkeypatch.setattr(importlib, "import_module", fail)


@pytest.mark.native
def test_build_info_says_what_was_built_and_what_runs() -> None:
    info = gmoe_ext.build_info()
    assert gmoe_ext.backend() == "native"
    assert info["version"] == gmoe_ext.__version__.removesuffix("+source")  # not installed, only built
    assert info["cpu"] in ("baseline", "avx2", "avx512")
    assert info["torch"] and info["compiler"]


def test_missing_library_warns_and_falls_back(not_built: None) -> None:
    with pytest.warns(RuntimeWarning, match=r"not built(.|\n)*fix: pip install(.|\n)*reference is used"):
        assert _native._load_or_fall_back() is None


def test_library_that_does_not_load_says_why(built_for_another_torch: None) -> None:
    with pytest.warns(RuntimeWarning, match=r"does not load(.|\n)*undefined symbol: aoti_torch_of_tomorrow(.|\n)*fix:"):
        assert _native._load_or_fall_back() is None


def test_library_for_another_python_is_named(not_built: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "_C.cpython-399-x86_64-linux-gnu.so").touch()
    monkeypatch.setattr(_native, "__file__", str(tmp_path / "_native.py"))
    with pytest.raises(NativeError, match=r"_C\.cpython-399-x86_64-linux-gnu\.so, which is for another Python"):
        _native._load()


def test_missing_shared_library_is_named_in_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise ImportError("libcudart.so.13: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(_native, "find_spec", lambda name: ModuleSpec(name, None))
    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(NativeError, match=r"fix: install what provides libcudart\.so\.13"):
        _native._load("_cuda")


@pytest.mark.parametrize("fault", ["not_built", "built_for_another_torch"])
def test_fallback_is_an_error_where_native_is_required(
    fault: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    request.getfixturevalue(fault)
    monkeypatch.setenv("GMOE_EXT_REQUIRE_NATIVE", "1")
    with pytest.raises(NativeError, match="fix:"):
        _native._load_or_fall_back()


def test_required_is_off_at_zero(not_built: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GMOE_EXT_REQUIRE_NATIVE", "0")
    with pytest.warns(RuntimeWarning):
        assert _native._load_or_fall_back() is None


def test_reference_can_be_chosen_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GMOE_EXT_BACKEND", "reference")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _native._load_or_fall_back() is None


def test_build_info_without_a_library_is_an_error(not_built: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "_library", None)
    with pytest.raises(NativeError, match="not built"):
        _native.build_info()


@pytest.mark.native
def test_library_older_than_the_python_files_is_named_as_such() -> None:
    with pytest.raises(NativeError, match=r"older than the Python files: gmoe::of_tomorrow is missing(.|\n)*fix:"):
        _dispatch.register("of_tomorrow", lambda x: x)


@pytest.mark.native
def test_other_runtime_errors_of_an_operator_pass_unchanged() -> None:
    with pytest.raises(RuntimeError, match="gmoe::cosine_topk: expected 'x'"):
        _dispatch.call("cosine_topk", torch.ones(3), torch.ones(2, 3), 1, 1e-12)


@pytest.fixture
def no_cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "_cuda", None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(_native, "find_spec", lambda name: None)
    monkeypatch.setattr(_native, "_no_cuda", _native._load_cuda()[1])


def test_cuda_kernels_are_looked_for_only_where_torch_has_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    library, reason = _native._load_cuda()
    assert library is None and "has no CUDA\n  fix:" in reason
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(_native, "find_spec", lambda name: None)
    library, reason = _native._load_cuda()
    assert library is None and "module _cuda is not built" in reason and "fix: on a machine with nvcc" in reason


def test_cuda_kernels_that_do_not_load_say_why(built_for_another_torch: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    library, reason = _native._load_cuda()
    assert library is None and "undefined symbol: aoti_torch_of_tomorrow" in reason


def test_cuda_tensors_without_cuda_kernels_are_an_error_that_says_how_to_build_them(no_cuda_kernels: None) -> None:
    with FakeTensorMode(), pytest.raises(NativeError) as caught:
        _native.expect_cuda("cosine_topk", (torch.empty(2, 3, device="cuda"), 1))
    text = str(caught.value)
    assert text.startswith(
        "gmoe::cosine_topk: got tensors on CUDA, but gmoe_ext: the compiled module _cuda is not built"
    )
    assert "fix: " in text and "GMOE_CUDA=ON pip install" in text and _native.why_no_cuda() in text
    _native.expect_cuda("cosine_topk", (torch.ones(2), 1))


@pytest.mark.native
def test_an_operator_without_a_kernel_for_a_device_asks_whether_that_is_cuda(
    no_cuda_kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(_native, "expect_cuda", lambda name, operands: asked.append(name))
    sparse = torch.ones(2, 3).to_sparse()  # of no device that has kernels
    with pytest.raises(NotImplementedError):
        _dispatch.call("cosine_topk", sparse, sparse, 1, 1e-12)
    assert asked == ["cosine_topk"]


class _Noted:
    """The library of a device on which an operator has noted something."""

    def __init__(self, text: str) -> None:
        self.text = text

    def raise_index_faults(self, device: int) -> None:
        raise RuntimeError(self.text)


def test_what_a_device_has_noted_is_an_index_error_without_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    found = "gmoe::aggregate: index out of range: 'columns' at position 7, expected 0 <= index < 5"
    remark = ", found on cuda:0 by an earlier call; so did gmoe::expert_linear"
    monkeypatch.setattr(_native, "_cuda", _Noted(found + remark))
    with pytest.raises(GraphIndexError) as caught:
        _native.raise_index_faults(torch.device("cuda", 0))
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.op, error.argument, error.position, error.value, error.bound) == (
        *("gmoe::aggregate", "columns", 7, None, 5),
    )
    assert str(error) == str(caught.value) == found + remark
    _native.raise_index_faults(torch.device("cpu"))


def test_what_is_no_index_stays_a_runtime_error(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "gmoe::expert_linear: expected 'order' to name every slot once, found on cuda:0 by an earlier call"
    monkeypatch.setattr(_native, "_cuda", _Noted(text))
    with pytest.raises(RuntimeError, match="expected 'order'"):
        _native.raise_index_faults(torch.device("cuda", 0))
