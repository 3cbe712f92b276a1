"""The settings walker: every setting with every kind of value, by flag, by file and in Python.

Settings, types and ranges are those of the dataclasses, so a new setting is walked too. A wrong value is refused with
exit code 2 and one sentence that names the setting; a right one arrives as it was given.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import pytest
import yaml

from gmoe_ext.errors import ConfigError
from gmoe_ext.models import graph_free, names, option_names
from gmoe_ext.train.__main__ import main
from gmoe_ext.train.config import Config, flatten
from gmoe_ext.train.parse import parse

from .files import write_molecules, write_nodes

KEYS = sorted(flatten(Config()))
SECTIONS = [f.name for f in dataclasses.fields(Config) if callable(f.default_factory)]
SWITCHES = ("dry_run", "offline")  # flags that need no value
NIGHTLY = os.environ.get("GMOE_EXT_PROPERTIES") == "nightly"
CPU_S = 1.0
FOREIGN = ("Traceback", "<class", "typing.", "Parser key", "jsonargparse", "validate")  # words of other libraries
MISSING = object()
TASKS = {
    "node": {"data": {"name": "tiny"}, "model": {"name": "gmoe-gcn"}},
    "molecule": {"data": {"name": "tinymol"}, "model": {"name": "gmoe-gcn"}},
    "distill": {"data": {"name": "tiny"}, "teacher": {"model": "sage"}, "student": {"model": "rbm"}},
}
ANY_TYPE = {
    "text": "x",
    "fraction": 2.5,
    "list": [1, 2],
    "mapping": {"a": 1},
    "null": None,
    "true": True,
    "not a number": math.nan,
    "infinite": math.inf,
    "too long for int64": 10**20,
    "too long for a float": 10**400,
    "empty": "",
    "control character": "a\7b",
    "missing": MISSING,
}


class Setting(NamedTuple):
    """A setting as its dataclass declares it: type, choices, range, and whether it may be null."""

    section: Any
    name: str
    kind: type
    choices: tuple[str, ...]
    span: Any
    optional: bool

    def values(self) -> dict[str, Any]:
        """What to try: every type, and both sides of both ends of the range."""
        if self.span is None:
            return ANY_TYPE | ({"right": self.choices[-1]} if self.choices else {})
        low, high, (left, right) = self.span
        step = 1 if self.kind is int else 1e-3
        ends = {"below": low if left == "(" else low - step, "lowest": low + step if left == "(" else low}
        if self.kind is int and high == math.inf:
            high = 2**63 - 1
        if high < math.inf:
            ends |= {"above": high if right == ")" else high + step, "highest": high - step if right == ")" else high}
        return ANY_TYPE | ends

    def allows(self, value: Any) -> bool:
        """Whether a value is right, by the declaration alone."""
        if value is None or value is MISSING:  # in a file, a key without a value is null
            return self.optional
        if self.choices:
            return value in self.choices
        if self.kind is str:
            return isinstance(value, str) and value not in ("", "a\7b")
        if self.kind is bool or isinstance(value, bool):
            return self.kind is bool and isinstance(value, bool)
        if not isinstance(value, int if self.kind is int else int | float) or not abs(value) <= sys.float_info.max:
            return False
        if self.kind is int and abs(value) >= 2**63:
            return False
        low, high, (left, right) = self.span
        above = value > low if left == "(" else value >= low
        return bool(above and (value < high if right == ")" else value <= high))


def setting(key: str) -> Setting:
    section, _, name = key.rpartition(".")
    owner = type(getattr(Config(), section)) if section else Config
    hint = get_type_hints(owner)[name]
    types = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    (kind,) = (a for a in types if a is not NoneType)
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    kind = str if choices else kind
    assert kind in (bool, int, float, str), f"{key}: the walker does not know the type {hint}"
    (field,) = (f for f in dataclasses.fields(owner) if f.name == name)
    assert kind in (bool, str) or "range" in field.metadata, f"{key}: a number without a range"
    return Setting(owner, name, kind, choices, field.metadata.get("range"), NoneType in types)


def model_of(key: str) -> tuple[dict[str, Any], bool]:
    """Settings of a run whose model has the option, and whether there is such a model."""
    section, _, name = key.rpartition(".")
    fields = {f.name for f in dataclasses.fields(type(getattr(Config(), section)))} if section else set()
    role = "name" if "name" in fields else "model"
    if section not in ("model", "teacher", "student"):
        return TASKS["distill" if section == "distill" else "node"], True
    own = name in (role, "epochs", "lr", "weight_decay", "patience")
    fitting = [n for n in names() if graph_free(n) == (section == "student") and (own or name in option_names(n))]
    chosen = {"model": "gmoe-gcn", "teacher": "sage", "student": "rbm"}
    model = chosen[section] if own or not fitting else fitting[0]
    if section == "model":
        return {"data": {"name": "tiny"}, "model": {"name": model}}, bool(fitting)
    return TASKS["distill"] | {section: {"model": model}}, bool(fitting)


def as_text(value: Any) -> str:
    """A value as somebody writes it behind a flag or into a file."""
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf"
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()


def as_flags(settings: dict[str, Any]) -> list[str]:
    return [f"--{s}.{k}={v}" for s, part in settings.items() for k, v in part.items()]


def by_flag(key: str, value: Any, base: dict[str, Any], folder: Path) -> tuple[list[str], Any]:
    """The command line, and what the value then is: text stays text where text is expected."""
    if value is MISSING:
        return [*as_flags(base), f"--{key}"], True if key in SWITCHES else ""
    text = value if isinstance(value, str) else as_text(value)
    one = setting(key)
    if one.kind is str and not (value is None and one.optional):
        value = text
    return [*as_flags(base), f"--{key}={text}"], value


def by_file(key: str, value: Any, base: dict[str, Any], folder: Path) -> tuple[list[str], Any]:
    """The command line of a file with the value in it; and the value."""
    section, _, name = key.rpartition(".")
    text = "" if value is MISSING else as_text(value)
    others = {s: {k: v for k, v in part.items() if f"{s}.{k}" != key} for s, part in base.items()}
    lines = [f"{s}: {as_text(part)}" for s, part in others.items() if part and s != section]
    lines += [f"{section}:", *(f"  {k}: {v}" for k, v in others.get(section, {}).items())] if section else []
    path = folder / "settings.yaml"
    path.write_text("\n".join([*lines, f"{'  ' if section else ''}{name}: {text}"]) + "\n")
    return ["--config", str(path)], value


DOORS: list[Callable[..., tuple[list[str], Any]]] = [by_flag, by_file]


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says to a wrong command line; it takes less than a second of the processor."""
    start = time.process_time()
    code = main(argv)
    spent = time.process_time() - start
    out, error = capsys.readouterr()
    assert code in (2, 3) and out == "", f"{argv}: exit code {code}: {out}{error}"
    first, *hints = error.rstrip("\n").split("\n")
    assert first.startswith("error: ") and all(hint.startswith("  ") for hint in hints), f"{argv}: {error}"
    assert len(error) < 500 and not any(word in error for word in FOREIGN), f"{argv}: {error}"
    assert spent < CPU_S, f"{argv}: refused only after {spent:.1f} s"
    return error.removeprefix("error: ")


@pytest.mark.parametrize("key", KEYS)
def test_every_kind_of_value_is_taken_or_refused_in_one_sentence(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]
) -> None:
    one, (base, there), walked = setting(key), model_of(key), 0
    for number, (what, given) in enumerate(one.values().items()):
        # By night each kind of value comes through both doors; by day half of them, through one. Python gets all.
        turn = number + KEYS.index(key)
        for door in DOORS if NIGHTLY else DOORS[turn // 2 % 2 :][: 1 - turn % 2]:
            argv, value = door(key, given, base, tmp_path)
            case, walked = f"{key}, {what}, {door.__name__}", walked + 1
            if door is by_flag and key == "recipe":
                assert refused(argv, capsys).startswith("unknown flag --recipe\n"), case
            elif (switched := value is True and given is MISSING) or one.allows(value):
                try:
                    arrived = flatten(parse(argv))[key]
                except ConfigError as error:
                    # Names of models and recipes are looked up at once; and no model may have the option.
                    assert f"unknown model '{value}'" in str(error) or one.kind is str or not there, f"{case}: {error}"
                    assert there or f"{key}: model " in str(error), f"{case}: {error}"
                else:
                    assert arrived == (True if switched else None if value is MISSING else value), case
            else:
                said = refused(argv, capsys)
                named = said.startswith((f"{key}: expected ", f"{tmp_path}/settings.yaml, line "))
                assert named, f"{case}: {said}"
    record_property("values", walked)


@pytest.mark.parametrize("key", KEYS)
def test_every_kind_of_value_is_taken_or_refused_in_python(
    key: str, record_property: Callable[[str, object], None]
) -> None:
    one = setting(key)
    record_property("values", len(one.values()) - 1)
    for what, value in one.values().items():
        if value is MISSING:
            continue
        if one.allows(value):
            assert getattr(one.section(**{one.name: value}), one.name) == value, what
        else:
            with pytest.raises(ConfigError, match=f"^{key}: expected .*, got "):
                one.section(**{one.name: value})


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("text", ["3", "x", "[1]", "null", "true", "''", "", "{x: 1}", "{1: 2}", "{null: 1}", ".nan"])
def test_a_section_that_holds_no_settings_is_refused(
    section: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(f"{section}: {text}\n")
    said = [refused([f"--{section}={text}"], capsys), refused(["--config", str(path)], capsys)]
    start = "unknown key '" if text.startswith("{") else f"{section}: expected settings such as"
    assert said[0].startswith(start)
    assert said[1].startswith((start, f"{path}, line 1: "))


@pytest.mark.parametrize(
    "flag",
    [
        *("--config", "--config=", "--config=/", "--config=null", "--config=[1]", "--config={a: 1}", "--config=.nan"),
        *("--print_config=x", "--print_config=3", "--x", "--x=1", "--", "-", "stray", "--data", "--train.lr.x=1"),
    ],
)
def test_a_flag_that_means_nothing_is_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(["--data.name=tiny", "--model.name=gcn", flag], capsys)


@pytest.mark.parametrize(
    "text",
    [
        *("", "null", "3", "- 1", "x", "a: b: c", "train: {lr: 1, lr: 2}", "? [1]\n: 2", "list: x", "help: 1", "1: 2"),
        *(
            "config: none.yaml",
            "print_config: 1",
            "&a [*a]",
            "train: {lr: !!binary aGk=}",
            "train: {lr: !!python/none x}",
        ),
    ],
)
def test_a_file_that_holds_no_settings_is_refused(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text + "\n")
    refused(["--config", str(path)], capsys)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_nodes(folder)
    write_molecules(folder)
    return folder


# Values that are right by themselves, in runs of one step: every task sees them at night; by day a setting meets one.
@pytest.mark.parametrize(
    ("key", "task"), [(k, t) for i, k in enumerate(KEYS) for j, t in enumerate(TASKS) if NIGHTLY or i % 3 == j]
)
def test_a_run_works_or_says_why_not(
    key: str, task: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # for a run_dir that is a number
    small = ("--device=cpu", f"--data.root={root}", f"--run_dir={tmp_path / 'run'}", "--dry_run")
    one = setting(key)
    tried = {what: value for what, value in one.values().items() if one.allows(value) and value is not MISSING}
    if one.span is not None and one.span.high < 2**63 - 1:
        tried.pop("highest", None)  # of widths and counts: more memory than a test should take
    for what, value in tried.items() if NIGHTLY else list(tried.items())[-1:]:
        argv, _ = by_flag(key, value, TASKS[task], tmp_path)
        if key == "recipe":
            continue
        code = main([*small, *argv])
        out, error = capsys.readouterr()
        case = f"{key}, {what}, {task}"
        diverged = code == 1 and "\n  fix: lower the learning rate, or check the features\n" in error
        assert diverged or code in (0, 2, 3), f"{case}: exit code {code}: {error}"
        assert (code == 0) != error.startswith("error: ") and error.count("error: ") <= 1, f"{case}: {error}"
        assert not any(word in error + out for word in FOREIGN) and len(error) < 2500, f"{case}: {error}"


def test_a_run_that_diverges_names_the_step_and_the_checkpoint(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    small = ("--device=cpu", f"--data.root={root}", f"--run_dir={run}", "--train.epochs=3", "--train.checkpoint_s=0")
    assert main([*small, *as_flags(TASKS["node"]), "--train.lr=1e20"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: gmoe-gcn: predictions are NaN or infinite after epoch 1, step 1; last good ")
    assert f"checkpoint: {run}/checkpoints/" in error and "\n  fix: lower the learning rate" in error
