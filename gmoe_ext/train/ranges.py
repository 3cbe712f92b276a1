"""What settings may be: their types and ranges, which stand beside them and are checked when they are made."""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass, field
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from ..errors import ConfigError

LAST = 2**63 - 1  # of whole numbers: that of int64
_LONGEST = 80  # characters of a wrong value that an error quotes
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


class Range(NamedTuple):
    """The numbers from ``low`` to ``high``; an end whose bracket is round, "(]" or "[)", is left out."""

    low: float
    high: float = math.inf
    brackets: str = "[]"

    def holds(self, value: float) -> bool:
        """Whether a value is a finite number of the range."""
        if not abs(value) <= sys.float_info.max:  # NaN, too
            return False
        above = value > self.low if self.brackets[0] == "(" else value >= self.low
        return above and (value < self.high if self.brackets[1] == ")" else value <= self.high)

    def __str__(self) -> str:
        if self.high == LAST:
            return f"of at least {self.low} and below 2**63"
        if self.high < math.inf:
            return f"in {self.brackets[0]}{self.low}, {self.high}{self.brackets[1]}"
        return f"above {self.low}" if self.brackets[0] == "(" else f"of at least {self.low}"


class Allowed(NamedTuple):
    """The values that a setting may have.

    Attributes:
        kind: bool, int, float, str, or the class of a section.
        choices: the only ones, if not empty.
        range: where a number lies.
        optional: whether None is one of them.
    """

    kind: type
    choices: tuple[str, ...]
    range: Range | None
    optional: bool

    def hold(self, value: object) -> bool:
        """Whether a value is one of them."""
        if value is None:
            return self.optional
        if self.choices:
            return value in self.choices
        if isinstance(value, bool) or self.kind is bool:
            return isinstance(value, bool) and self.kind is bool
        if isinstance(value, str):
            return self.kind is str and value != "" and all(character >= " " for character in value)
        if isinstance(value, int | float) and self.kind in (int, float):
            return isinstance(value, self.kind | int) and (self.range is None or self.range.holds(value))
        return isinstance(value, self.kind)

    def __str__(self) -> str:
        if self.choices:
            text = "one of " + ", ".join(map(repr, self.choices))
        else:
            text = _NAMES.get(self.kind, "settings such as {KEY: VALUE}")
            text += "" if self.range is None else f" {self.range}"
        return f"{text}, or null" if self.optional else text


@cache
def allowed(section: type[Any]) -> dict[str, Allowed]:
    """Return what each setting of a section may be, by its type and range."""
    hints, found = get_type_hints(section), {}
    for one in dataclasses.fields(section):
        hint = hints[one.name]
        types = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        (kind,) = (a for a in types if a is not NoneType)
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        span = one.metadata.get("range")
        if kind is int and span is not None and span.high == math.inf:
            span = span._replace(high=LAST)
        found[one.name] = Allowed(str if choices else kind, choices, span, NoneType in types)
    return found


def refusal(key: str, expected: Allowed, got: object) -> ConfigError:
    """Word the error that a setting has a value it may not have."""
    words = {None: "null", True: "true", False: "false"}
    if got is None or isinstance(got, bool):
        text = words[got]
    elif isinstance(got, int) and abs(got) >= 10**_LONGEST:  # Python itself writes no more than 4,300 digits
        text = f"a number of more than {_LONGEST} digits"
    else:
        text = repr(got) if isinstance(got, str) and not (got and got.isprintable()) else str(got)
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]} ... ({len(text):,} characters)"
    return ConfigError(f"{key}: expected {expected}, got {text}")


def within(default: float | None, low: float, high: float = math.inf, brackets: str = "[]") -> Any:
    """A setting that is a number of a `Range`, or None if that is its default."""
    return field(default=default, metadata={"range": Range(low, high, brackets)})


@dataclass
class Section:
    """Settings that refuse a value of another type or outside its range when they are made: by flag, file or Python."""

    def __post_init__(self) -> None:
        kind: Any = type(self)
        section = kind.__name__.removesuffix("Config").lower()
        for name, expected in allowed(kind).items():
            value = getattr(self, name)
            if not expected.hold(value):
                raise refusal(f"{section}.{name}".removeprefix("."), expected, value)
