"""The errors that the package raises on purpose, so that callers and exit codes can tell them apart."""

from __future__ import annotations

import re

# Matches the texts of GraphIndexError.of, csrc/ops/compat.h and csrc/ops/cuda/index_faults.cpp: change them together.
_BAD_INDEX = re.compile(
    r"([\w:.]+): index out of range: '(\w+)' at position (\d+)(?: is (-?\d+))?, expected 0 <= index < (\d+)"
    r"(?:, found on \S+ by an earlier call(?:; so did .*)?)?"
)
_LONGEST = 2000  # characters of a message; what a file says may be any text


class GmoeError(Exception):
    """Base of all errors raised on purpose by gmoe_ext.

    Messages quote files and flags: a control character in them is shown escaped, and a text without end is cut.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) > _LONGEST:
            text = f"{text[:_LONGEST]} ... ({len(text):,} characters)"
        return text if text.isprintable() else "".join(map(_visible, text))


class ConfigError(GmoeError, ValueError):
    """A flag, a YAML file or a combination of settings is wrong (exit code 2)."""


class DataError(GmoeError, ValueError):
    """A data set is missing, damaged or inconsistent (exit code 3)."""


class WriteError(DataError, OSError):
    """A file cannot be written, for lack of space for example (exit code 3); an older one with its name is kept."""


class DataWarning(UserWarning):
    """Something in a data set was not read, or was read in a way that may surprise."""


class ArgumentError(GmoeError, ValueError):
    """An argument has the wrong shape, value or device."""


class NotFiniteError(ArgumentError):
    """Predictions with NaN or infinity were given to a metric: they have no score, and training probably diverged."""


class ArgumentTypeError(GmoeError, TypeError):
    """An argument has the wrong type or dtype."""


class DerivativeError(GmoeError, NotImplementedError):
    """A derivative was asked for that an operator does not have."""


class GraphIndexError(GmoeError, IndexError):
    """An index points outside its range.

    Made of one text, like every error here, so that it reaches another process (a DataLoader's) as itself.

    Attributes:
        op: name of the function or operator.
        argument: name of the argument that holds the index.
        position: flat position of the first bad element in it.
        value: the bad index, or None if a device recorded only its position.
        bound: valid indices are 0 <= index < bound.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        found = _BAD_INDEX.search(text)
        groups: tuple[str | None, ...] = found.groups() if found else (None,) * 5
        self.op, self.argument = groups[:2]
        self.position, self.value, self.bound = (None if group is None else int(group) for group in groups[2:])

    @classmethod
    def of(cls, op: str, argument: str, position: int, value: int, bound: int) -> GraphIndexError:
        """Word the error."""
        return cls(
            f"{op}: index out of range: '{argument}' at position {position} is {value}, expected 0 <= index < {bound}"
        )

    @classmethod
    def of_native(cls, error: RuntimeError) -> GraphIndexError | None:
        """Take the text of an error of the compiled operators; None if it is not about a bad index."""
        found = _BAD_INDEX.search(str(error))
        return None if found is None else cls(found[0])


def expect(ok: bool, where: str, argument: str, expected: str, got: object) -> None:
    """Raise ``ValueError`` in the package's wording unless ``ok``; ``where`` is what the argument belongs to."""
    if not ok:
        raise ArgumentError(f"{where}: expected '{argument}' {expected}, got {got!r}")


def expect_choice(value: object, known: tuple[str, ...], where: str, argument: str) -> None:
    """Raise ``ValueError`` unless a value is one of the known ones."""
    expect(value in known, where, argument, f"to be {' or '.join(map(repr, known))}", value)


class NativeError(GmoeError, ImportError):
    """The compiled library is missing or does not load; the message names the reason and the fix."""


class MissingExtraError(GmoeError, ImportError):
    """An optional dependency is not installed; the message names the extra to install."""


def _visible(character: str) -> str:
    if character.isprintable() or character in "\n\t":
        return character
    return character.encode("unicode_escape").decode()
