"""One registry of models: a name and its options make a model, and a model knows both again."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from ..errors import ConfigError


class Model(nn.Module):
    """Base of every registered model.

    Attributes:
        name: the name it was built under.
        config: every build option, defaults included; ``build(model.name, **model.config)`` rebuilds the architecture.
    """

    name: str = ""
    config: dict[str, Any]

    def num_parameters(self) -> tuple[int, int]:
        """Count (active, total) trainable parameters.

        Active ones are those that serve one row: k of n experts. A layer that leaves some of its parameters idle
        for a row says how many by a method ``inactive_parameters() -> int``.
        """
        total = sum(p.numel() for p in self.parameters() if p.requires_grad)
        counters = (getattr(module, "inactive_parameters", None) for module in self.modules())
        return total - sum(count() for count in counters if callable(count)), total


Factory = Callable[..., Model]
F = TypeVar("F", bound=Factory)

_FACTORIES: dict[str, Factory] = {}


def register(name: str) -> Callable[[F], F]:
    """Register a factory (a class or a function) of keyword options under ``name``.

    A factory that takes an option called ``name`` is told the name it is registered under.
    """

    def add(factory: F) -> F:
        if name in _FACTORIES:
            raise ValueError(f"model {name!r} is registered twice")
        _FACTORIES[name] = factory
        return factory

    return add


def names() -> list[str]:
    """Names of all registered models, sorted."""
    return sorted(_FACTORIES)


def option_names(name: str) -> tuple[str, ...]:
    """Names of the options that :func:`build` takes for a model.

    Raises:
        ConfigError: unknown name.
    """
    return tuple(option for option in inspect.signature(_factory(name)).parameters if option != "name")


def build(name: str, **options: Any) -> Model:
    """Build a model by its registered name.

    Args:
        name: one of :func:`names`.
        options: the model's options; see its class.

    Returns:
        The model, with ``name`` and ``config`` set.

    Raises:
        ConfigError: unknown name, unknown option, or an option is missing or out of range.

    Example:
        >>> teacher = build("gmoe-gcn", in_dim=64, hidden_dim=128, out_dim=8, num_layers=2, num_experts=4, k=1)
        >>> again = build(teacher.name, **teacher.config)
    """
    factory = _factory(name)
    signature = inspect.signature(factory)
    implied = {"name": name} if "name" in signature.parameters else {}
    try:
        bound = signature.bind(**implied, **options)
    except TypeError as error:
        raise ConfigError(f"model {name!r}: {error}; its options: {', '.join(option_names(name))}") from error
    bound.apply_defaults()
    try:
        model = factory(**bound.arguments)
    except ValueError as error:
        raise ConfigError(f"model {name!r}: {error}") from error
    model.name = name
    model.config = {option: value for option, value in bound.arguments.items() if option != "name"}
    return model


def _factory(name: str) -> Factory:
    if name not in _FACTORIES:
        raise ConfigError(f"unknown model {name!r}; known models: {', '.join(names())}")
    return _FACTORIES[name]
