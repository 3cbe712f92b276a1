"""Every error the package raises on purpose, so that callers and exit codes can tell them apart."""

from __future__ import annotations


class GmoeError(Exception):
    """Base of all errors raised on purpose by gmoe_ext."""


class ConfigError(GmoeError, ValueError):
    """A flag, a YAML file or a combination of settings is wrong (exit code 2)."""


class DataError(GmoeError, ValueError):
    """A data set is missing, damaged or inconsistent (exit code 3)."""


class GraphIndexError(GmoeError, IndexError):
    """An index points outside its range.

    Attributes:
        argument: name of the argument that holds the index.
        position: flat position of the first bad element in it.
        value: the bad index.
        bound: valid indices are 0 <= index < bound.
    """

    def __init__(self, op: str, argument: str, position: int, value: int, bound: int) -> None:
        super().__init__(
            f"{op}: index out of range: '{argument}' at position {position} is {value}, expected 0 <= index < {bound}"
        )
        self.op, self.argument, self.position, self.value, self.bound = op, argument, position, value, bound

    def __reduce__(self) -> tuple[type, tuple[str, str, int, int, int]]:
        return type(self), (self.op, self.argument, self.position, self.value, self.bound)


class NativeError(GmoeError, ImportError):
    """The compiled library is missing or does not fit this environment."""


class MissingExtraError(GmoeError, ImportError):
    """An optional dependency is not installed; the message names the extra to install."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs '{package}', which is not installed: pip install 'gmoe_ext[{extra}]'")
        self.package, self.extra = package, extra
