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

    def learners(self) -> list[Model]:
        """The models that a loss is asked of, one by one: this one, or those it is made of if each learns by itself."""
        return [self]

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

_FACTORIES: dict[str, tuple[Factory, inspect.Signature]] = {}
_GRAPH_FREE: set[str] = set()


def register(
    name: str, passes_to: Callable[..., nn.Module] | None = None, graph_free: bool = False
) -> Callable[[F], F]:
    """Register a factory (a class or a function) of keyword options under ``name``.

    A factory that takes an option called ``name`` is told the name it is registered under.

    Args:
        name: what :func:`build` calls the model.
        passes_to: where a factory that takes ``**options`` hands them on. Those that have a default there are the
            model's options, too, unless the factory names them itself.
        graph_free: the model answers rows alone, ``model(x)``: a student.
    """

    def add(factory: F) -> F:
        if name in _FACTORIES:
            raise ValueError(f"model {name!r} is registered twice")
        _FACTORIES[name] = factory, _signature(factory, passes_to)
        if graph_free:
            _GRAPH_FREE.add(name)
        return factory

    return add


def _signature(factory: Factory, passes_to: Callable[..., nn.Module] | None) -> inspect.Signature:
    own = inspect.signature(factory)
    if passes_to is None:
        return own
    named = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    passed = [
        p.replace(kind=p.KEYWORD_ONLY)
        for p in inspect.signature(passes_to).parameters.values()
        if p.default is not p.empty and p.name not in own.parameters
    ]
    return own.replace(parameters=[*named, *passed])


def names() -> list[str]:
    """Names of all registered models, sorted."""
    return sorted(_FACTORIES)


def graph_free(name: str) -> bool:
    """Whether a model answers rows alone, without a graph.

    Raises:
        ConfigError: unknown name.
    """
    _registered(name)
    return name in _GRAPH_FREE


def option_names(name: str) -> tuple[str, ...]:
    """Names of the options that :func:`build` takes for a model.

    Raises:
        ConfigError: unknown name.
    """
    _, signature = _registered(name)
    return tuple(option for option in signature.parameters if option != "name")


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
    factory, signature = _registered(name)
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


def _registered(name: str) -> tuple[Factory, inspect.Signature]:
    if name not in _FACTORIES:
        raise ConfigError(f"unknown model {name!r}; known models: {', '.join(names())}")
    return _FACTORIES[name]
