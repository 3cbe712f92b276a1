"""Shared by the layers: a configuration from however it is given, and whether a forward repeats another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from ..errors import ArgumentTypeError

Config = TypeVar("Config")


def configured(
    config_type: type[Config], leading: Sequence[str], given: tuple[Any, ...], options: dict[str, Any]
) -> Config:
    """Make a layer's configuration.

    Args:
        config_type: a dataclass whose fields all have defaults.
        leading: the fields that may be given by position.
        given: one configuration, or values of the leading fields.
        options: fields by keyword; they replace those of a configuration.

    Raises:
        TypeError: there is no such field, one is given twice, or there are too many.
    """
    config = config_type()
    if given and isinstance(given[0], config_type):
        config, given = given[0], given[1:]
        leading = ()
    if len(given) > len(leading):
        raise ArgumentTypeError(
            f"expected a {config_type.__name__}, or {', '.join(leading) or 'nothing'} by position, got {given!r}"
        )
    made: Config = replace(config, **dict(zip(leading, given, strict=False)), **options)  # type: ignore[type-var]
    return made


def recomputing() -> bool:
    """Whether this forward runs inside a backward: activation checkpointing repeats it, and it must change nothing."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
