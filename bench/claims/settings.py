"""What holds for a whole run of the claims."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from .claim import Missing

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """Threads, sizes and what is left out.

    Attributes:
        threads: of ours and of every rival.
        quick: sizes that run in seconds and judge nothing.
        without: rivals left out, such as "torch.compile".
        device: where inputs lie; "cuda" in the claims of a GPU, which the tests build on "cpu".
    """

    threads: int = 1
    quick: bool = False
    without: tuple[str, ...] = ()
    device: str = "cpu"

    def size(self, full: int, quick: int) -> int:
        """The one of two sizes that this run takes."""
        return quick if self.quick else full

    def rival(self, name: str, package: str | None = None) -> None:
        """Raise Missing when a rival is left out or its package is not installed."""
        if name in self.without:
            raise Missing(f"left out by --without {name}")
        if package is not None and importlib.util.find_spec(package) is None:
            raise Missing(f"package missing: {package}")


def imported(package: str, make: Callable[[], T]) -> T:
    """Call ``make``, which imports a package that is there and yet may not load."""
    try:
        return make()
    except (ImportError, OSError) as error:
        raise Missing(f"package does not load: {package} ({error})") from error
