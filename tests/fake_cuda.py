"""A GPU that is not there: tasks whose tensors are torch's fake ones on "cuda", and a watch for what would wait for it.

A fake tensor has a shape, a dtype and a device, and no values. Operands on different devices raise, and so does all
that would need a value: `.item()`, `bool()`, boolean masks, shapes that depend on values.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from gmoe_ext import Graph

CUDA = torch.device("cuda", 0)
T = TypeVar("T")


class WouldWait(AssertionError):
    """The host would have waited for the device."""


class NoWaiting(TorchDispatchMode):
    """Refuses copies between host and device, except asynchronous ones to the device, and operands on both."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # Kernels take numbers of the host as arguments, and torch lets a scalar tensor be one.
        operands = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.dim() > 0]
        results = [t for t in tree_leaves(result) if isinstance(t, Tensor) and t.dim() > 0]
        devices = {t.device.type for t in (*operands, *results)}
        if len(devices) > 1 and not self._asynchronous(func, args, kwargs):
            raise WouldWait(f"{func} on {sorted(devices)}: the host would wait for the device")
        return result

    @staticmethod
    def _asynchronous(func: Any, args: Any, kwargs: Any) -> bool:
        if func is not torch.ops.aten._to_copy.default or kwargs.get("device") is None:
            return False
        to_device = args[0].device.type == "cpu" and torch.device(kwargs["device"]).type != "cpu"
        return to_device and bool(kwargs.get("non_blocking"))


class FakeCudaMode(FakeTensorMode):
    """Fake tensors; what torch's C++ makes beside one of them, and so on "meta" (see below), is on the device too."""

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == torch.device("meta"):
            kwargs["device"] = CUDA
        return super().dispatch(func, types, args, kwargs)


class FakeCuda:
    """Moves whole tasks onto the fake device.

    Args:
        monkeypatch: undoes, after the test, what torch has to be told.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._mode = FakeCudaMode(allow_non_fake_inputs=True)
        self._patch = monkeypatch
        make = torch.Tensor._make_subclass

        def without_device(cls: Any, *args: Any, dispatch_device: bool = False, **kwargs: Any) -> Any:
            # Autograd asks C++ for the device, and a torch without CUDA has no streams for "cuda". Fake tensors then
            # say "meta" there, as what they hold is; their `device` in Python, which all checks go by, stays "cuda".
            return make(cls, *args, dispatch_device=dispatch_device and cls is not FakeTensor, **kwargs)

        monkeypatch.setattr(torch.Tensor, "_make_subclass", staticmethod(without_device))
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda values: values)
        numpy = torch.Tensor.numpy

        def of_the_host(values: Tensor) -> Any:
            with _disable_current_modes():  # which would make it a view of nothing
                return numpy(values)

        monkeypatch.setattr(torch.Tensor, "numpy", of_the_host)

    def place(self, thing: T, stays: Iterable[Tensor] = ()) -> T:
        """A deep copy with every tensor on the device but those that stay; graphs keep their caches."""
        memo: dict[int, Any] = {id(tensor): tensor for tensor in stays}
        with self._patch.context() as patch:
            patch.setitem(copy._deepcopy_dispatch, Tensor, self._tensor)
            patch.setitem(copy._deepcopy_dispatch, nn.Parameter, self._parameter)
            patch.setitem(copy._deepcopy_dispatch, Graph, _graph)
            return copy.deepcopy(thing, memo)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """The time in which nothing may wait for the device."""
        with self._mode, NoWaiting():
            yield

    def _tensor(self, tensor: Tensor, _memo: Any) -> Tensor:
        with self._mode:
            return self._mode.from_tensor(tensor.detach()).to(CUDA)

    def _parameter(self, parameter: nn.Parameter, memo: Any) -> nn.Parameter:
        with self._mode:
            return nn.Parameter(self._tensor(parameter, memo), parameter.requires_grad)


def _graph(graph: Graph, memo: Any) -> Graph:
    names = ("num_nodes", "offsets", "columns", "weight", "edge_type", "num_edge_types", "edge_id")
    placed = Graph(*(copy.deepcopy(getattr(graph, name), memo) for name in names))
    memo[id(graph)] = placed
    object.__setattr__(placed, "_structure", copy.deepcopy(graph._structure, memo))
    for name, derived in graph._derived.items():
        placed._derived[name] = copy.deepcopy(derived, memo)
    if "transpose" in placed._derived:
        placed.prefill(transpose=placed._derived["transpose"])
    return placed
