"""The compiled library is found, refused with what mends it, or replaced by the reference aloud."""

from __future__ import annotations

import importlib
import warnings
from importlib.machinery import ModuleSpec
from typing import Any

import pytest
import torch

import gmoe_ext
from gmoe_ext import _native
from gmoe_ext.errors import NativeError
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
    assert _native.num_threads() == torch.get_num_threads()


def test_missing_library_warns_and_falls_back(not_built: None) -> None:
    with pytest.warns(RuntimeWarning, match=r"not built(.|\n)*mend: pip install(.|\n)*reference is used"):
        assert _native._load_or_fall_back() is None


def test_library_that_does_not_load_says_why(built_for_another_torch: None) -> None:
    with pytest.warns(RuntimeWarning, match=r"do not load(.|\n)*undefined symbol: aoti_torch_of_tomorrow(.|\n)*mend:"):
        assert _native._load_or_fall_back() is None


@pytest.mark.parametrize("fault", ["not_built", "built_for_another_torch"])
def test_fallback_is_an_error_where_native_is_required(
    fault: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    request.getfixturevalue(fault)
    monkeypatch.setenv("GMOE_EXT_REQUIRE_NATIVE", "1")
    with pytest.raises(NativeError, match="mend:"):
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
    with pytest.raises(NativeError, match=r"older than the Python files: gmoe::of_tomorrow is missing(.|\n)*mend:"):
        _dispatch.register("of_tomorrow", lambda x: x)


@pytest.mark.native
def test_other_runtime_errors_of_an_operator_pass_unchanged() -> None:
    with pytest.raises(RuntimeError, match="gmoe::cosine_topk: expected 'x'"):
        _dispatch.call("cosine_topk", torch.ones(3), torch.ones(2, 3), 1, 1e-12)
