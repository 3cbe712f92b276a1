"""torch.compile as a rival."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import TypeVar

import torch

from .claim import Missing
from .settings import Settings

F = TypeVar("F", bound=Callable[..., object])


def compiled(settings: Settings, function: F) -> F:
    """The function compiled by inductor for the shapes it is called with.

    Raises:
        Missing: left out, or there is no C++ compiler to compile with.
    """
    settings.rival("torch.compile")
    if settings.device == "cpu" and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        raise Missing("no C++ compiler for torch.compile")
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)  # type: ignore[return-value]
