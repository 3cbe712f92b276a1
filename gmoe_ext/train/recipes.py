"""The shipped recipes: one YAML file per data set, in `gmoe_ext/configs`.

published: {paper: RbM, metric: accuracy}    # holds for every published figure below
shared:                                      # settings of every recipe
  data: {name: cora_planetoid}
blocks:                                      # settings that several recipes have in common
  ind:
    data: {setting: inductive}
recipes:
  cora_planetoid_rbm_ind:
    published: {table: 1, mean: 77.44, std: 1.08, how: best test epoch}
    from: [ind]                              # blocks to build on; later ones win
    student: {model: rbm, dropout: 0.6}      # the recipe's own settings win over all others
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
DEFAULT = "default"  # what runs without arguments
MOST_CHARACTERS = 2**15  # PyYAML reads them in less than a second
MOST_VALUES = 10_000
MOST_DIGITS = 250  # of a whole number, which then fits a float in any base

Settings = dict[str, Any]


@dataclass(frozen=True)
class Published:
    """A figure of a paper: mean and standard deviation, in percent for accuracy and ROC-AUC.

    Attributes:
        paper: RbM or GMoE.
        metric: accuracy, rocauc or rmse.
        table: number of the table.
        mean: over the paper's runs.
        std: over the paper's runs.
        how: how the paper chose the epoch, where it says so.
    """

    paper: str
    metric: str
    table: int
    mean: float
    std: float
    how: str = ""

    def spread(self) -> str:
        """Mean and standard deviation, as papers print them."""
        digits = 3 if self.metric == "rmse" else 2
        return f"{self.mean:.{digits}f} +- {self.std:.{digits}f}"

    def __str__(self) -> str:
        how = f", {self.how}" if self.how else ""
        return f"{self.metric} {self.spread()} ({self.paper}, table {self.table}{how})"


@dataclass(frozen=True)
class Recipe:
    """A named set of settings.

    Attributes:
        name: what `--config` calls it.
        settings: by section, without those that have their default.
        published: the figure it is to reproduce, or None.
    """

    name: str
    settings: Settings
    published: Published | None


def names() -> list[str]:
    """Names of all shipped recipes but the default, sorted."""
    return sorted(name for path in CONFIGS.glob("*/*.yaml") for name in _read(path))


def find(name: str) -> Recipe:
    """Return a recipe by its name, which may have its folder before it and .yaml behind it.

    Raises:
        ConfigError: there is none; the message names similar ones.
    """
    stem = name.removesuffix(".yaml").removeprefix("gmoe/").removeprefix("rbm/")
    if stem == DEFAULT:
        return Recipe(DEFAULT, read_yaml(CONFIGS / "default.yaml"), None)
    for path in CONFIGS.glob("*/*.yaml"):
        if stem.startswith(path.stem) and stem in _read(path):
            return _read(path)[stem]
    close = get_close_matches(stem, names(), n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}?" if close else "fix: --list shows all recipes"
    raise ConfigError(f"--config: no file and no shipped recipe '{name}'\n  {hint}")


def listing(word: str = "") -> list[str]:
    """One line per recipe whose name has ``word`` in it: the name and its published figure."""
    chosen = [find(name) for name in names() if word in name]
    if not chosen:
        return [f"no shipped recipe has '{word}' in its name"]
    width = max(len(recipe.name) for recipe in chosen)
    return [f"{recipe.name:<{width}}  {recipe.published or 'no published figure'}" for recipe in chosen]


@cache
def _read(path: Path) -> dict[str, Recipe]:
    content = read_yaml(path)
    blocks, common = content["blocks"], content["published"]
    recipes = {}
    for name, own in content["recipes"].items():
        figure, parents = own.pop("published", None), own.pop("from", [])
        settings: Settings = content["shared"]
        for block in (*(blocks[parent] for parent in parents), own):
            settings = _merge(settings, block)
        recipes[name] = Recipe(name, settings, None if figure is None else Published(**common, **figure))
    return recipes


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> Settings:
    """Both mappings in one, down to their leaves; values of ``above`` win."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


class _Loader(yaml.SafeLoader):
    """YAML whose dates stay text, whose 1e-3 is a number, as JSON's is, and whose numbers are finite."""

    def whole(self, node: yaml.ScalarNode) -> int:
        """Read a whole number."""
        if len(node.value) > MOST_DIGITS:
            raise self._error(node, f"expected a number of at most {MOST_DIGITS} digits, got {len(node.value):,}")
        return self.construct_yaml_int(node)

    def number(self, node: yaml.ScalarNode) -> float:
        """Read a number with a point or an exponent."""
        value: float = self.construct_yaml_float(node)
        if not math.isfinite(value):
            raise self._error(node, f"expected a finite number, got {node.value[:MOST_DIGITS]}")
        return value

    @staticmethod
    def _error(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
        return yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_FLOAT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.whole)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.number)


def load_yaml(text: str, name: str) -> Any:
    """Read the settings of one text.

    Raises:
        ConfigError: it is no YAML, gives a key twice, or is larger than settings can be, if only by its aliases.
    """
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(f"{name}: expected settings of at most {MOST_CHARACTERS:,} characters, got {len(text):,}")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _count(node, name, {}) > MOST_VALUES:
            raise ConfigError(f"{name}: expected at most {MOST_VALUES:,} settings; its aliases stand for more")
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        where = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        what = ", ".join(filter(None, (error.context, error.problem)))
        raise ConfigError(f"{name}{where}: {what}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise error if isinstance(error, ConfigError) else ConfigError(f"{name}: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: its values are nested too deeply") from error


def _count(node: yaml.Node, name: str, known: dict[int, float]) -> float:
    """Count the values of a node, aliases written out, and refuse keys that are given twice."""
    if id(node) not in known:
        known[id(node)] = math.inf  # of an alias to a node that it is part of
        parts = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, _ in node.value:
                text, line = str(key.value), key.start_mark.line + 1
                if text in lines:
                    raise ConfigError(f"{name}: key '{text}' is given twice, in lines {lines[text]} and {line}")
                lines[text] = line
            parts = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_count(part, name, known) for part in parts)
    return known[id(node)]


def read_yaml(path: Path) -> Any:
    """Read a file of settings; see `load_yaml`."""
    try:
        with path.open(encoding="utf-8") as file:
            return load_yaml(file.read(MOST_CHARACTERS + 1), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected a file of settings in UTF-8: {error}") from error
