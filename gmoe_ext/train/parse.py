"""Turn flags and recipes into a Config, with errors that suggest what was probably meant."""

from __future__ import annotations

import dataclasses
import json
import re
from argparse import SUPPRESS, Action, ArgumentError, ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from ..errors import ConfigError
from ..models import graph_free, names, option_names
from . import recipes
from .config import Config, expected, fingerprint, flatten, from_dict, settings_hash
from .ranges import refusal

_MODEL_KEYS = {"model.name", "teacher.model", "student.model"}
_SWITCHES = {"dry_run": "run one step of everything and write nothing", "offline": "never download data"}
# Flags that choose what to train; without any of them the embedded default is read.
_CHOOSERS = re.compile(r"--(config|model|model\.name|teacher|teacher\.model|student|student\.model)(=.*)?")


class _List(Action):
    """Print the shipped recipes and exit."""

    def __call__(self, parser: ArgumentParser, namespace: Namespace, values: Any, option_string: Any = None) -> None:
        print("\n".join(recipes.listing(values or "")))
        parser.exit()


def build_parser() -> jsonargparse.ArgumentParser:
    """Build the command line's parser; its flags are the fields of Config."""
    parser = jsonargparse.ArgumentParser(
        prog="python -m gmoe_ext.train",
        description="Train GMoE networks and distill RbM students. Without arguments: a demo of both, in a minute.",
        exit_on_error=False,
        allow_abbrev=False,
        parser_mode="settings",
    )
    parser.add_argument("--config", action="config", help="a YAML file, or the name of a shipped recipe")
    parser.add_argument(
        "--list",
        action=_List,
        nargs="?",
        dest="list",
        default=SUPPRESS,
        metavar="WORD",
        help="list the shipped recipes (with WORD in their name) and their published figures",
    )
    parser.add_class_arguments(Config, skip={"recipe", *_SWITCHES})
    parser.add_argument("--recipe", type=str | None, help=SUPPRESS)  # a key of config.yaml, see _find_recipes
    for name, text in _SWITCHES.items():
        parser.add_argument(f"--{name}", nargs="?", const=True, default=False, type=bool, help=text)
    return parser


def parse(argv: Sequence[str], tell: Callable[[str, str], None] | None = None) -> Config:
    """Read flags and recipes; later ones win.

    If a flag gives a recipe another model, options of the recipe that this model does not know are left out.

    Args:
        argv: arguments after the program's name. Without one that chooses a model, the embedded default is read first.
        tell: called with the name of each section of which something is left out, and a line about it.

    Raises:
        ConfigError: an unknown key (with close matches), recipe or model, a wrong type, or an option that the model
            does not have.
    """
    args = [str(arg) for arg in argv]
    if not any(_CHOOSERS.fullmatch(arg) for arg in args):
        args = ["--config", recipes.DEFAULT, *args]
    args = _find_recipes(args)
    unknown = _unknown_to_new_models(args)
    config = _read([*args, *(f"--{section}.{option}=null" for section, keys in unknown.items() for option in keys)])
    check(config)
    for section, keys in unknown.items():
        if tell is not None:
            name = config.networks()[section].name
            tell(section, f"{name} has no {', '.join(keys)}: left out of the recipe")
    return config


def load_recipe(recipe: str | Path) -> Config:
    """Read one shipped recipe, by name, or one file of settings."""
    return parse(["--config", str(recipe)])


def default_directory(config: Config) -> str:
    """Name the run directory: runs/[DATA-]RECIPE-[SETTING-][HASH-]SEED, or runs/DATA-MODELS-... without a recipe.

    Data and setting are named where they are not the recipe's. The hash is of other options that differ from the
    recipe's (from the defaults, without a recipe); none, no hash. The embedded default's own name is that of its data.
    """
    base = load_recipe(config.recipe) if config.recipe else Config()
    named = {"seed", "data.name", "data.setting"}
    if config.recipe is None:
        named |= _MODEL_KEYS
        parts = [config.data.name, *(network.name for network in config.networks().values())]
    elif config.recipe == recipes.DEFAULT:
        parts = [config.data.name]
    else:
        parts = [config.recipe] if config.data.name == base.data.name else [config.data.name, config.recipe]
    if config.data.setting != base.data.setting:
        parts.append("ind" if config.data.setting == "inductive" else "tran")
    before = fingerprint(base)
    differing = {key: value for key, value in fingerprint(config).items() if key not in named and value != before[key]}
    if differing:
        parts.append(settings_hash(differing)[:8])
    return "runs/" + "-".join([*parts, str(config.seed)])


def published(config: Config) -> recipes.Published | None:
    """Return the published figure that a run's result compares with: its recipe's, for the same data and models."""
    if config.recipe is None:
        return None
    recipe, base = recipes.find(config.recipe), load_recipe(config.recipe)
    subject = [(c.data.name, c.data.setting, *(n.name for n in c.networks().values())) for c in (config, base)]
    return recipe.published if subject[0] == subject[1] else None


def dump(config: Config) -> str:
    """Return the settings as YAML that `--config` reads back."""
    text: str = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)
    return text


def check(config: Config) -> None:
    """Refuse combinations that no run could work with; `config.Section` checks each value alone.

    Raises:
        ConfigError: names the key, its value and what was expected.
    """
    name = config.data.name or ""  # YAML has null
    if not name or name != Path(name).name:
        raise ConfigError(
            f"data.name: expected the name of a data set, not a path, got '{name}'\n"
            f"  fix: --data.root {Path(name).parent} --data.name {Path(name).name or 'NAME'}"
        )
    if config.recipe is not None:
        recipes.find(config.recipe)
    if config.student.model is None and config.model.name is None:
        raise ConfigError(
            f"no model is set for data '{config.data.name}'\n"
            "  fix: pass --config RECIPE, or --model.name gmoe-gcn, or --teacher.model sage --student.model rbm"
        )
    if config.student.model is not None and config.teacher.model is None:
        raise ConfigError("student.model is set, but no teacher\n  fix: --teacher.model sage")
    for section, network in config.networks().items():
        student = section == "student"
        if graph_free(network.name) != student:
            kind = "a graph-free model" if student else "a network on the graph"
            fitting = ", ".join(name for name in names() if graph_free(name) == student)
            raise ConfigError(f"{network.key}: expected {kind} ({fitting}), got '{network.name}'")
        known = option_names(network.name)
        for option in network.options:
            if option not in known:
                has = ", ".join(known)
                raise ConfigError(f"{section}.{option}: model '{network.name}' has no such option; it has {has}")


def explain(message: str) -> str:
    """Say jsonargparse's message in one plain line, with the closest known key where one is unknown."""
    wrong = re.search(r'(?:Parser key "([\w.]+)"|argument --([\w.]+)):', message)
    one = expected(wrong[1] or wrong[2]) if wrong else None
    if wrong and one is not None:
        return str(refusal(wrong[1] or wrong[2], one, _value(message)))
    message = " ".join(message.split())
    flag = re.search(r"unrecognized arguments: (\S+)", message)
    group = re.search(r"Group '(\w+)' does not accept option '([\w.]+)'", message)
    other = re.search(r"(?:key|option) [\"']([\w.]+)[\"'] is not (?:expected|accepted)", message, re.IGNORECASE)
    other = other or re.search(r"Key must be a string, got: (.*)\.", message)
    if flag:
        name = flag[1].lstrip("-").split("=")[0]
        return f"unknown flag {flag[1].split('=')[0]}" + _suggest(name, "--")
    if group or other:
        name = f"{group[1]}.{group[2]}" if group else other[1] if other else ""
        return f"unknown key '{name}'" + _suggest(name, "")
    return re.sub(r'^Parser key "([\w.]+)":', r"\1:", message)


def _value(message: str) -> str:
    """Find the value that one of jsonargparse's messages is about; it quotes it at the end, if there is one."""
    found = re.search(r"(?:.*(?:Got|Given) value: ?|.*Unable to load config [\"'])(.*?)[\"']?\s*$", message, re.DOTALL)
    return {"None": "null", "True": "true", "False": "false"}.get(found[1], found[1]) if found else "nothing"


_parser = cache(build_parser)  # a command parses several times, and most of a parse is building this


def _read(args: list[str]) -> Config:
    try:
        values = _parser().parse_args(args).as_dict()
    except (ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(explain(str(error))) from error
    values.pop("config", None)
    return from_dict(values)


def _unknown_to_new_models(args: list[str]) -> dict[str, list[str]]:
    """Return, by section, the options of a recipe that the model chosen by a flag does not have."""
    given = {arg[2:].split("=")[0] for arg in args if arg.startswith("--")}
    if not (given & _MODEL_KEYS and "config" in given):
        return {}
    settings = [arg for arg in args if arg.split("=")[0] != "--print_config"]
    files_alone = [arg for before, arg in pairwise(["", *settings]) if "--config" in (before, arg.split("=")[0])]
    recipe = _read(files_alone).networks()
    unknown = {}
    for section, network in _read(settings).networks().items():
        if network.key in given and section in recipe and recipe[section].name != network.name:
            known = {*option_names(network.name), *(flag.removeprefix(f"{section}.") for flag in given)}
            unknown[section] = [option for option in network.options if option not in known]
    return {section: options for section, options in unknown.items() if options}


def _suggest(name: str, prefix: str) -> str:
    """Suggest known keys: those of the same name in another section, else similar ones."""
    keys = [*flatten(Config()), *(("config", "print_config", "list") if prefix else ())]
    leaf = name.split(".")[-1]
    close = [key for key in keys if key.split(".")[-1] == leaf] or get_close_matches(name, keys, n=2, cutoff=0.6)
    if not close:
        return "\n  fix: --help lists all"
    return "\n  did you mean " + " or ".join(prefix + key for key in close[:3]) + "?"


def _find_recipes(args: list[str]) -> list[str]:
    """Replace the name of a shipped recipe by its settings; a file that exists as given comes first."""
    found = list(args)
    for i, arg in enumerate(args):
        if arg == "--config" and i + 1 < len(args) and not args[i + 1].startswith("--"):
            found[i + 1] = _recipe(args[i + 1])
        elif arg.startswith("--config="):
            found[i] = "--config=" + _recipe(arg.removeprefix("--config="))
        elif arg.split("=")[0] == "--recipe":
            raise ConfigError("unknown flag --recipe\n  did you mean --config?")
        else:
            _refuse_endless_number(arg if "=" in arg else f"{args[i - 1]}={arg}")
    return found


def _refuse_endless_number(arg: str) -> None:
    """Refuse what jsonargparse makes an int and then cannot turn into a float."""
    flag, _, text = arg.partition("=")
    one = expected(flag.removeprefix("--"))
    if one is not None and len(text) > recipes.MOST_DIGITS and text.removeprefix("-").isdigit():
        raise refusal(flag.removeprefix("--"), one, text)


def _recipe(name: str) -> str:
    path = Path(name)
    if path.is_file():
        if path.resolve().parent.parent == recipes.CONFIGS:
            raise ConfigError(f"--config {name}: this file holds several recipes\n  fix: --list {path.stem} names them")
        settings = recipes.read_yaml(path)
        if not isinstance(settings, dict):
            raise ConfigError(f"--config {name}: expected sections of settings, such as 'train: {{lr: 0.01}}'")
        return _json(name, settings)
    recipe = recipes.find(name)
    return _json(name, {"recipe": recipe.name, **recipe.settings})


def _json(name: str, settings: dict[str, Any]) -> str:
    try:
        return json.dumps(settings)
    except TypeError as error:
        raise ConfigError(f"--config {name}: expected numbers, words, true, false and null: {error}") from error


def _load_value(text: str) -> Any:
    """Read a flag's value as jsonargparse does, but no more than settings can be."""
    recipes.load_yaml(text, "a flag's value")
    return _load_yaml(text)


_load_yaml = jsonargparse.get_loader("yaml")
jsonargparse.set_loader("settings", _load_value, (yaml.YAMLError, ConfigError))
