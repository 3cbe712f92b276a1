"""Arguments of the package's commands: a parser whose errors are the package's own, and types that check values."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from .errors import ConfigError, DataError


class Parser(argparse.ArgumentParser):
    """Reads a command line; raises `ConfigError` where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse has to say about an argument."""
        raise ConfigError(f"{message.removeprefix('argument ')}\n  fix: {self.prog} --help")


def path(text: str) -> Path:
    """Read a path; the empty one would be the current directory, and a null character would end it early."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got nothing")
    if "\0" in text:
        raise argparse.ArgumentTypeError(f"expected a path without null characters, got {text!r}")
    return Path(text)


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """Make the type of whole numbers from ``low`` to ``high``; None: without an upper end."""
    expected = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if number < low or (high is not None and number > high):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text[:99]!r}")
        return number

    read.__name__ = f"int in [{low}, {'inf' if high is None else high}]"
    return read


def positive(high: float) -> Callable[[str], float]:
    """Make the type of numbers above 0, up to ``high``."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = 0.0
        if not 0 < number <= high:
            raise argparse.ArgumentTypeError(f"expected a number above 0 and up to {high:g}, got {text[:99]!r}")
        return number

    read.__name__ = f"float in (0, {high:g}]"
    return read


def check_file(path: Path, option: str) -> None:
    """Check that a file to be read is one: opening a pipe waits for ever, and a device has no end.

    Raises:
        DataError: it is missing, or something else; the message begins with ``option``.
    """
    try:
        if path.is_file():
            return
        kind = "a directory" if path.is_dir() else "a device, a pipe or a socket"
        found = f"expected a file, got {kind}" if path.exists() else "no such file"
    except OSError as error:  # a name that is too long
        found = error.strerror or str(error)
    raise DataError(f"{option} {path}: {found}")
