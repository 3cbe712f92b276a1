"""Every argument of every command but training, with values it cannot have: exit code 2 or 3, one error, no traceback.

The arguments are those that the parsers hold: a new one is walked or fails here, and so does a command that is not
listed. `tests/train/test_settings.py` walks the settings of training.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gmoe_ext
from gmoe_ext import arguments
from gmoe_ext.data import sources
from gmoe_ext.export.__main__ import main as export

pytestmark = pytest.mark.native

# The arguments of a run that succeeds; in them {work} is a folder of small files, {run} a run of training.
SOUND: dict[str, dict[str, tuple[str, ...]]] = {
    "predict": {
        "--student": ("{work}/student.safetensors",),
        "--input": ("{work}/rows.csv",),
        "--output": ("{work}/answers.csv",),
        "--header": ("no",),
        "--resume": ("never",),
        "--threads": ("1",),
    },
    "export": {
        "run_dir": ("{run}",),
        "--output": ("{work}/exported.safetensors",),
        "--format": ("packed",),
        "--dtype": ("float32",),
        "--rows": ("{work}/rows.npz",),
        "--feature_names": ("{work}/names.txt",),
    },
    "report": {"--diff": ("{run}", "{run}")},
    "bench_student": {
        "student": ("{work}/student.safetensors",),
        "--run": ("{run}",),
        "--data_root": ("{run}/../data",),
        "--out": ("{work}/latency",),
        "--batch": ("1",),
        "--threads": ("1",),
        "--seconds": ("0.001",),
        "--seed": ("0",),
    },
    "data list": {"--root": ("{work}",)},
    "data info": {"name": ("tiny",), "--root": ("{run}/../data",)},
    "data get": {"name": ("tinyraw",), "--root": ("{work}/fetched",)},
    "runtime": {"--student": ("{work}/student.safetensors",), "--cflags": (), "--libs": ()},
}
WALKED_ELSEWHERE = {"train", "collect_env"}  # by its settings; has no arguments

NO_PATHS = ("", "no\0where", "{work}/rows.csv/x.csv", "{work}/" + "n" * 300 + ".csv", "a" * 5000)
NO_FILES = ("{work}/missing.csv", "{work}/missing/x.csv", "{work}/loop.csv", "-1", "[1, 2]", "null", "\udcff")
NO_SOUND_FILES = ("{work}", "{work}/pipe.csv", "{work}/text.txt", "{work}/empty.csv", "{work}/empty.npz", "/dev/zero")
NO_OUTPUTS = ("{work}", "{work}/pipe.csv", "{work}/missing/x.csv")
NO_FOLDERS = ("{work}/pipe.csv", "{work}/text.txt")
NO_NUMBERS = ("", "x", "-1", "nan", "inf", "-inf", "[1, 2]", "{{a: 1}}", "null", "true", "9" * 5000, "1e400", "1x")
NO_WHOLE_NUMBERS = (*NO_NUMBERS, "2.5", "1e3")
NO_NAMES = ("", "x", "-1", "[1, 2]", "null", "nan", "a" * 5000, "no\0where", "..", "\udcff")
REFUSED = {
    "predict --output": (*NO_PATHS, *NO_OUTPUTS, "{work}/rows.csv", "{work}/answers.txt"),
    "export --output": (*NO_PATHS, *NO_OUTPUTS, "{work}/rows.npz", "{run}/config.yaml", "{run}/metrics.jsonl"),
    "bench_student --out": (*NO_PATHS, *NO_FOLDERS),
    "bench_student --data_root": (*NO_PATHS, *NO_FILES, *NO_SOUND_FILES),
    "data list --root": (*NO_PATHS, *NO_FOLDERS),
    "data get --root": (*NO_PATHS, *NO_FOLDERS),
}


def module_of(command: str) -> Any:
    name = command.split()[0]
    inside = (Path(gmoe_ext.__file__).parent / name).is_dir()
    return import_module(f"gmoe_ext.{name}.__main__" if inside else f"gmoe_ext.{name}")


@cache
def parser_of(command: str) -> argparse.ArgumentParser:
    class BuiltError(Exception):
        pass

    def stop(parser: argparse.ArgumentParser, *_: object) -> None:
        raise BuiltError(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(BuiltError) as built:
            module_of(command).main([])
    parser: argparse.ArgumentParser = built.value.args[0]
    for name in command.split()[1:]:
        parser = subparsers(parser)[name]
    return parser


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return {
        name: sub
        for a in parser._actions
        if isinstance(a, argparse._SubParsersAction)
        for name, sub in a.choices.items()
    }


def commands() -> list[str]:
    package = Path(gmoe_ext.__file__).parent
    names = {path.parent.name for path in package.glob("*/__main__.py")}
    names |= {path.stem for path in package.glob("*.py") if '__name__ == "__main__"' in path.read_text()}
    return [
        " ".join(words).strip()
        for name in sorted(names - WALKED_ELSEWHERE)
        for words in ([name, sub] for sub in subparsers(parser_of(name)) or [""])
    ]


def actions(command: str) -> dict[str, argparse.Action]:
    kept = (action for action in parser_of(command)._actions if not isinstance(action, argparse._HelpAction))
    return {(*action.option_strings, action.dest)[0]: action for action in kept}


def refused(command: str, name: str, action: argparse.Action) -> tuple[str, ...]:
    """Values that an argument cannot have, by its type."""
    if special := REFUSED.get(f"{command} {name}"):
        return special
    if action.nargs == 0:
        return ("", "1", "true")
    if action.choices is not None:
        return ("", "x", "-1", "null", "[1, 2]", "a" * 5000)
    if action.type is arguments.path:
        return (*NO_PATHS, *NO_FILES, *NO_SOUND_FILES)
    if action.type is None:
        return NO_NAMES
    kind = getattr(action.type, "__name__", "")
    assert kind.startswith(("int in", "float in")), f"{command} {name}: say here which values its type refuses"
    return (*(NO_WHOLE_NUMBERS if kind.startswith("int") else NO_NUMBERS), *(() if name == "--seed" else ("0",)))


def argv(given: dict[str, tuple[str, ...]]) -> list[str]:
    """Words of a command line; a single value stands in the same word, since it may begin with a dash."""
    words: list[str] = []
    for name, values in given.items():
        if not name.startswith("-"):
            words += values
        elif len(values) == 1:
            words.append(f"{name}={values[0]}")
        else:
            words += [name, *values]
    return words


def run(command: str, words: list[str]) -> tuple[int, str, float]:
    """Run a command; returns its exit code, what it printed as errors, and the seconds of the processor."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", how) for how in ("strict", "backslashreplace"))
    start = time.process_time()
    with redirect_stdout(out), redirect_stderr(err):
        code = module_of(command).main([*command.split()[1:], *words])
    took = time.process_time() - start
    err.flush()
    return code, err.buffer.getvalue().decode(), took


@pytest.fixture(scope="module")
def places(distilled_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    work = tmp_path_factory.mktemp("work")
    assert export([str(distilled_run), "--output", str(work / "student.safetensors")]) == 0
    random = np.random.default_rng(0)
    np.savetxt(work / "rows.csv", random.normal(size=(5, 12)), delimiter=",")
    np.savez(work / "rows.npz", x=random.normal(size=(5, 8)).astype(np.float32), nodes=np.arange(5), y=np.arange(5) % 3)
    (work / "names.txt").write_text("\n".join(f"column {i}" for i in range(8)))
    (work / "text.txt").write_text("text")
    for name in ("empty.csv", "empty.npz"):
        (work / name).touch()
    (work / "loop.csv").symlink_to("loop.csv")
    os.mkfifo(work / "pipe.csv")
    with zipfile.ZipFile(work / "tinyraw.zip", "w") as archive:
        archive.writestr("tinyraw/raw/edge.csv", "0,1\n")
    return {"work": work, "run": distilled_run}


@pytest.fixture(autouse=True)
def own_source(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # where relative paths lead
    source = sources.Source(((places["work"] / "tinyraw.zip").as_uri(),))
    monkeypatch.setitem(sources.SOURCES, "tinyraw", source)
    for extra in ("onnx", "onnxruntime", "matplotlib.figure"):  # seconds of bench_student, for contestants and a plot
        monkeypatch.setitem(sys.modules, extra, None)


def test_every_command_and_argument_is_walked() -> None:
    assert sorted(commands()) == sorted(SOUND)
    for command, given in SOUND.items():
        assert given.keys() == actions(command).keys(), command


def damaged(command: str, places: dict[str, Path]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield command lines with one wrong value: the argument, the value, the words."""
    sound = {name: tuple(value.format(**places) for value in values) for name, values in SOUND[command].items()}
    for name, action in actions(command).items():
        for value in (value.format(**places) for value in refused(command, name, action)):
            for place in range(max(1, len(sound[name]))):
                values = (*sound[name][:place], value, *sound[name][place + 1 :])
                yield name, value, argv({**sound, name: values})
        others = {other: values for other, values in sound.items() if other != name}
        if name.startswith("-") and action.nargs != 0:
            yield name, "", [*argv(others), name]
        if action.required:
            yield name, "", argv(others)
        if isinstance(action.nargs, int) and action.nargs > 1:
            yield name, "", argv({**sound, name: sound[name][:-1]})
    yield "--unknown", "", [*argv(sound), "--unknown=1"]


@pytest.mark.parametrize("command", sorted(SOUND))
def test_a_bad_value_is_refused_in_one_sentence(command: str, places: dict[str, Path]) -> None:
    sound = {name: tuple(value.format(**places) for value in values) for name, values in SOUND[command].items()}
    code, error, _ = run(command, argv(sound))
    assert code == 0, error
    faults, walked = [], 0
    for name, value, words in damaged(command, places):
        code, error, took = run(command, words)
        told = error[error.find("error: ") :]
        quoted = value[:40].replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode() or "''"
        shown = name.strip("-") in told or quoted in told
        one = told.startswith("error: ") and told.count("error: ") == 1 and told.count("\n") <= 3 and len(told) < 2300
        if code not in (2, 3) or "Traceback" in error or not (one and shown) or took > 1:
            faults.append(f"{name} {value[:40]!r}: exit code {code} after {took:.2f} s: {error[:300]}")
        walked += 1
    assert not faults, "\n".join(faults)
    assert walked >= 9


@pytest.mark.parametrize("command", sorted(SOUND))
def test_numbers_at_the_ends_of_their_ranges_are_accepted(command: str, places: dict[str, Path]) -> None:
    for name, action in actions(command).items():
        kind = getattr(action.type, "__name__", "")
        if kind.startswith("int in") and action.type is not None:
            low, high = kind[len("int in [") : -1].split(", ")
            ends = (low, f" {low} ", f"{low}_0" if low != "0" else "0", *(() if high == "inf" else (high,)))
            assert [action.type(end) for end in ends] == [int(end) for end in ends], name  # type: ignore[operator]
        elif kind.startswith("float in") and action.type is not None:
            high = kind.removesuffix("]").split(", ")[1]
            assert action.type(high) == float(high) and action.type("1e-9") == 1e-9, name  # type: ignore[operator]


def test_a_file_whose_name_is_not_utf8_is_written_and_named(places: dict[str, Path], tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    for command, name, output in (
        ("export", "--output", odd),
        ("predict", "--output", odd.with_name(odd.name + ".csv")),
    ):
        given = {**SOUND[command], name: (str(output),)}
        words = argv({key: tuple(value.format(**places) for value in values) for key, values in given.items()})
        code, error, _ = run(command, words)
        assert code == 0 and output.is_file(), error
    assert run("data list", [f"--root={odd}"])[0] == 3  # it is a file
    odd.unlink()
    odd.mkdir()
    assert run("data list", [f"--root={odd}"])[0] == 0
