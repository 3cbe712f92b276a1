"""Ranges of settings, which stand beside the settings and are checked when these are made."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..errors import ConfigError


class Range(NamedTuple):
    """The numbers from ``low`` to ``high``; an end whose bracket is round, "(]" or "[)", is left out."""

    low: float
    high: float = math.inf
    brackets: str = "[]"

    def holds(self, value: object) -> bool:
        """Whether a value is a finite number of the range."""
        if not isinstance(value, int | float) or not -math.inf < value < math.inf:
            return False
        above = value > self.low if self.brackets[0] == "(" else value >= self.low
        return above and (value < self.high if self.brackets[1] == ")" else value <= self.high)

    def __str__(self) -> str:
        if self.high < math.inf:
            return f"a number in {self.brackets[0]}{self.low}, {self.high}{self.brackets[1]}"
        return f"a number above {self.low}" if self.brackets[0] == "(" else f"a number of at least {self.low}"


def within(default: float | None, low: float, high: float = math.inf, brackets: str = "[]") -> Any:
    """A setting that is a number of a `Range`, or None if that is its default."""
    return field(default=default, metadata={"range": Range(low, high, brackets)})


@dataclass
class Section:
    """Settings that refuse a value outside its range when they are made: by flag, by file or in Python."""

    def __post_init__(self) -> None:
        section = type(self).__name__.removesuffix("Config").lower()
        for one in dataclasses.fields(self):
            value, expected = getattr(self, one.name), one.metadata.get("range")
            optional = value is None and one.default is None
            if expected is not None and not optional and not expected.holds(value):
                key = f"{section}.{one.name}".removeprefix(".")
                raise ConfigError(f"{key}: expected {expected}, got {value}")
