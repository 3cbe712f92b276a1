"""Operator schemas and command lines are public: a change to them shows up as a change to a file in tests/snapshots.

To change them on purpose: ``GMOE_EXT_UPDATE_SNAPSHOTS=1 python -m pytest tests/test_snapshots.py``; commit the file.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gmoe_ext import ops  # noqa: F401  (registers the operators)
from gmoe_ext.train.parse import build_parser

SNAPSHOTS = Path(__file__).parent / "snapshots"
COMMANDS = (
    "bench_student.__main__",
    "data.__main__",
    "export.__main__",
    "predict.__main__",
    "report",
    "runtime.__main__",
)


def expect_unchanged(name: str, lines: list[str]) -> None:
    path = SNAPSHOTS / name
    if os.environ.get("GMOE_EXT_UPDATE_SNAPSHOTS") == "1":
        path.write_text("\n".join(lines) + "\n")
    known = path.read_text().splitlines()
    changes = list(difflib.unified_diff(known, lines, f"tests/snapshots/{name}", "this tree", n=0, lineterm=""))
    assert not changes, (
        "\n".join(changes) + "\n\nUsers depend on these names, types and defaults. If the change is on purpose, run\n"
        "  GMOE_EXT_UPDATE_SNAPSHOTS=1 python -m pytest tests/test_snapshots.py\n"
        "commit the file, and tell users in CHANGELOG.md."
    )


@pytest.mark.native
def test_operator_schemas_are_unchanged() -> None:
    schemas = [str(schema) for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("gmoe::")]
    expect_unchanged("schemas.txt", sorted(schemas))


def test_command_lines_are_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = list(_flags("train", build_parser()))
    for module in COMMANDS:
        lines += _flags(module.removesuffix(".__main__"), _parser_of(module, monkeypatch))
    expect_unchanged("command_line.txt", lines)


class _BuiltError(Exception):
    """Carries a command's parser out of its main function."""


def _parser_of(module: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    def stop(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise _BuiltError(parser)

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(_BuiltError) as built:
            importlib.import_module(f"gmoe_ext.{module}").main([])
    parser: argparse.ArgumentParser = built.value.args[0]
    return parser


def _flags(command: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield one line per flag: its names, type, choices and default."""
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield from _flags(f"{command} {name}", sub)
            continue
        if "_ActionConfigLoad" in str(type(action)):  # the heading of a section, such as --data
            continue
        hint = getattr(action, "_typehint", None) or action.type or (bool if action.nargs == 0 else str)
        choices = f" in {sorted(map(str, action.choices))}" if action.choices is not None else ""
        yield f"{command} {' '.join(action.option_strings) or action.dest}: {_name(hint)}{choices} = {action.default!r}"


def _name(hint: Any) -> str:
    """Name a type in the same words on every version of Python."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join("None" if argument is type(None) else _name(argument) for argument in arguments)
    if typing.get_origin(hint) is typing.Literal:
        return f"Literal{list(arguments)}"
    return str(getattr(hint, "__name__", hint))
