"""The settings of one run of the claims, and the rivals that can take part in it."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from .claim import Missing

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., object])


@dataclass(frozen=True)
class Settings:
    """Threads, sizes and rivals left out.

    Attributes:
        threads: of ours and of every rival.
        quick: use sizes that run in seconds and judge nothing.
        without: rivals left out, such as "torch.compile".
        device: of the inputs; "cuda" in the claims of a GPU, which the tests also run on "cpu".
    """

    threads: int = 1
    quick: bool = False
    without: tuple[str, ...] = ()
    device: str = "cpu"

    def size(self, full: int, quick: int) -> int:
        """Return the size that applies to this run."""
        return quick if self.quick else full

    def rival(self, name: str, package: str | None = None) -> None:
        """Raise Missing when a rival is left out or its package is not installed."""
        if name in self.without:
            raise Missing(f"left out by --without {name}")
        if package is not None and importlib.util.find_spec(package) is None:
            raise Missing(f"package missing: {package}")


def imported(package: str, make: Callable[[], T]) -> T:
    """Call ``make``, which imports an installed package that may still fail to load."""
    try:
        return make()
    except (ImportError, OSError) as error:
        raise Missing(f"package does not load: {package} ({error})") from error


def compiled(settings: Settings, function: F) -> F:
    """Compile a function with inductor for the shapes it is called with.

    Raises:
        Missing: it is left out, or there is no C++ compiler.
    """
    settings.rival("torch.compile")
    if settings.device == "cpu" and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        raise Missing("no C++ compiler for torch.compile")
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)  # type: ignore[return-value]
