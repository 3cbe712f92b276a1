"""``python -m gmoe_ext.report --diff A B``: find where two training runs part.

Exit codes: 0 the runs are equal, 1 they differ, 2 settings, 3 a run is missing or damaged.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from . import arguments, checkpoint
from .errors import DataError, GmoeError
from .terminal import report_error
from .train.config import flatten
from .train.parse import load_recipe

_SHOWN = 8  # differing settings that are printed
_OF_THE_PLACE = {"run_dir", "resume"}
_OF_THE_CLOCK = {"wall_s"}


def main(argv: Sequence[str] | None = None) -> int:
    """Compare two runs and return the exit code."""
    parser = arguments.Parser(prog="python -m gmoe_ext.report", description="Compare two training runs.")
    parser.add_argument(
        "--diff", nargs=2, type=arguments.path, metavar=("A", "B"), required=True, help="their run directories"
    )
    try:
        options = parser.parse_args(argv)
        lines = differences(*options.diff)
    except (GmoeError, OSError) as error:
        return report_error(error)
    print("\n".join(lines) if lines else "equal: settings, every recorded epoch, and all weights")
    return 1 if lines else 0


def differences(a: Path, b: Path) -> list[str]:
    """Compare two runs: settings, recorded epochs up to the first that differs, and weights.

    Times are not compared.

    Args:
        a, b: run directories.

    Returns:
        One line per finding, `NAME: value of a | value of b`; none if the runs are equal.

    Raises:
        DataError: a directory holds no run, or a file in it is damaged.
    """
    for directory in (a, b):
        if not (directory / "metrics.jsonl").is_file():
            raise DataError(
                f"'{directory}': expected a run directory with metrics.jsonl\n  fix: name the --run_dir of a run"
            )
    return [*_settings(a, b), *_epochs(a, b), *_weights(a, b)]


def _settings(a: Path, b: Path) -> list[str]:
    ours, theirs = (flatten(load_recipe(directory / "config.yaml")) for directory in (a, b))
    names = [name for name in sorted(ours.keys() - _OF_THE_PLACE) if ours[name] != theirs[name]]
    lines = [f"settings   {name}: {ours[name]} | {theirs[name]}" for name in names[:_SHOWN]]
    return lines if len(names) <= _SHOWN else [*lines, f"settings   {len(names) - _SHOWN} more differ"]


def _epochs(a: Path, b: Path) -> list[str]:
    pairs = zip_longest(_records(a), _records(b))
    for position, (ours, theirs) in enumerate(pairs):
        if ours is None or theirs is None:
            shorter = a if ours is None else b
            return [f"metrics    equal for {position} records, then '{shorter}' ends"]
        names = {*ours, *theirs} - _OF_THE_CLOCK
        # By text, in which NaN equals NaN.
        differing = sorted(name for name in names if json.dumps(ours.get(name)) != json.dumps(theirs.get(name)))
        if differing:
            where = ", ".join(f"{name} {ours.get(name)}" for name in ("phase", "epoch", "step"))
            values = ", ".join(f"{name}: {ours.get(name)} | {theirs.get(name)}" for name in differing)
            return [f"metrics    equal for {position} records, then at {where}: {values}"]
    return []


def _records(directory: Path) -> Iterator[dict[str, Any]]:
    path = directory / "metrics.jsonl"
    try:
        lines = path.read_text().splitlines()
        records = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise DataError(f"'{path}': expected one JSON object a line, got {error}") from error
    if not all(isinstance(record, dict) for record in records):
        raise DataError(f"'{path}': expected one JSON object a line")
    return iter(records)


def _weights(a: Path, b: Path) -> list[str]:
    files = [
        {path.name: path for path in (directory / "checkpoints").glob("[!.]*.safetensors")} for directory in (a, b)
    ]
    lines = []
    for name in sorted({*files[0], *files[1]}):
        if name not in files[0] or name not in files[1]:
            lines.append(f"weights    {name}: only in '{a if name in files[0] else b}'")
            continue
        (ours, _), (theirs, _) = (checkpoint.load(found[name]) for found in files)
        lines += _tensors(name, ours, theirs)
    return lines


def _tensors(name: str, ours: checkpoint.Tensors, theirs: checkpoint.Tensors) -> list[str]:
    forms = [{key: (value.shape, value.dtype) for key, value in tensors.items()} for tensors in (ours, theirs)]
    if forms[0] != forms[1]:
        return [f"weights    {name}: tensors of other names, shapes or dtypes"]
    differing = [key for key in ours if not torch.equal(_bytes(ours[key]), _bytes(theirs[key]))]
    if not differing:
        return []
    first = differing[0]
    largest = (ours[first].double() - theirs[first].double()).abs().max().item()
    return [
        f"weights    {name}: {len(differing)} of {len(ours)} tensors differ, first '{first}', by at most {largest:.3g}"
    ]


def _bytes(values: torch.Tensor) -> torch.Tensor:
    return values.flatten().view(torch.uint8)


if __name__ == "__main__":
    sys.exit(main())
