"""Tests written for the CPU, run on a GPU: what they make without naming a device comes there, of the same numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

_DRAWN_LIKE = (torch.rand_like, torch.randn_like)


class MadeOn(TorchFunctionMode):
    """Tensors come into being on a device: drawn on the CPU, by its generators, and moved."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _DRAWN_LIKE:
            return func(args[0].cpu(), *args[1:], **kwargs).to(args[0].device)
        if func not in _device_constructors() or kwargs.get("device") is not None:
            return func(*args, **kwargs)
        wants_grad = kwargs.pop("requires_grad", False)
        made = func(*args, **kwargs).to(self.device)
        return made.requires_grad_() if wants_grad else made
