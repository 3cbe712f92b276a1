"""One registry of models: a name and flat options make a model, and the model knows both again."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn

from ..errors import ConfigError


class Output(NamedTuple):
    """A model's prediction and what its routing adds to the loss.

    Attributes:
        logits: [N, C] for nodes, [G, tasks] for molecules.
        aux: scalar to add to the task loss, already scaled; exactly 0 for a model without routing.
    """

    logits: Tensor
    aux: Tensor


class Model(nn.Module):
    """Base of every registered model.

    Attributes:
        name: the name it was built under.
        config: every build option, defaults included; ``build(model.name, **model.config)`` rebuilds the architecture.
    """

    name: str = ""
    config: dict[str, Any]

    def learners(self) -> list[Model]:
        """List the models that each have a loss of their own: this one, or its members if they learn separately."""
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


class _Registered(NamedTuple):
    factory: Factory
    options: inspect.Signature  # flat: the fields of a dataclass parameter stand in its place
    settings: dict[str, type]  # dataclass parameters of the factory
    graph_free: bool


_MODELS: dict[str, _Registered] = {}


def register(*names: str, graph_free: bool = False) -> Callable[[F], F]:
    """Register a factory (a class or a function) under one or several names.

    The model's options are the factory's parameters. A parameter that is a dataclass contributes its fields as flat
    options instead, and a parameter called ``name`` receives the registered name.

    Args:
        names: what ``build`` calls the model.
        graph_free: whether the model maps rows alone, ``model(x)``: a student.
    """

    def add(factory: F) -> F:
        parameters: list[inspect.Parameter] = []
        settings: dict[str, type] = {}
        for option in inspect.signature(factory, eval_str=True).parameters.values():
            kind: type = option.annotation
            if is_dataclass(kind):
                settings[option.name] = kind
                parameters += inspect.signature(kind).parameters.values()
            else:
                parameters.append(option.replace(kind=option.KEYWORD_ONLY))
        for name in names:
            if name in _MODELS:
                raise ValueError(f"model {name!r} is registered twice")
            _MODELS[name] = _Registered(factory, inspect.Signature(parameters), settings, graph_free)
        return factory

    return add


def names() -> list[str]:
    """List the names of all registered models, sorted."""
    return sorted(_MODELS)


def graph_free(name: str) -> bool:
    """Tell whether a model maps rows alone, without a graph.

    Raises:
        ConfigError: unknown name.
    """
    return _registered(name).graph_free


def option_names(name: str) -> tuple[str, ...]:
    """List the options that ``build`` takes for a model.

    Raises:
        ConfigError: unknown name.
    """
    return tuple(option for option in _registered(name).options.parameters if option != "name")


def build(name: str, **options: Any) -> Model:
    """Build a model by its registered name.

    Args:
        name: one of ``names``.
        options: the model's options; see its class and the dataclasses it takes.

    Returns:
        The model, with ``name`` and ``config`` set.

    Raises:
        ConfigError: unknown name, unknown option, or an option is missing or out of range.

    Examples:
        >>> teacher = build("gmoe-gcn", in_dim=64, hidden_dim=128, out_dim=8, num_layers=2, num_experts=4, k=1)
        >>> again = build(teacher.name, **teacher.config)
    """
    factory, signature, settings, _ = _registered(name)
    implied = {"name": name} if "name" in signature.parameters else {}
    try:
        bound = signature.bind(**implied, **options)
    except TypeError as error:
        raise ConfigError(f"model {name!r}: {error}; its options: {', '.join(option_names(name))}") from error
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    try:
        for parameter, kind in settings.items():
            fields = inspect.signature(kind).parameters
            arguments[parameter] = kind(**{field: arguments.pop(field) for field in fields})
        model = factory(**arguments)
    except ValueError as error:
        raise ConfigError(f"model {name!r}: {error}") from error
    model.name = name
    model.config = {option: value for option, value in bound.arguments.items() if option != "name"}
    return model


def _registered(name: str) -> _Registered:
    if name not in _MODELS:
        raise ConfigError(f"unknown model {name!r}; known models: {', '.join(names())}")
    return _MODELS[name]
