"""``python -m gmoe_ext.data``: list data sets, describe one, or fetch one from its official source.

Exit codes: 0 done, 2 settings, 3 data.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from .. import arguments
from ..errors import DataError, GmoeError
from ..terminal import report_error, tell
from .load import SYNTHETIC, read, resolve_root
from .ogb_raw import is_raw_folder
from .sources import SOURCES, get


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    parser = arguments.Parser(prog="python -m gmoe_ext.data", description="Data sets: list, info, get.")
    commands = parser.add_subparsers(dest="command", required=True)
    root_help = "data folder (default: environment variable GMOE_EXT_DATA, else 'data')"
    commands.add_parser("list", help="data sets that are present or can be fetched")
    commands.add_parser("info", help="counts, split and checksums of one").add_argument("name", help="data set")
    commands.add_parser("get", help="fetch one from its official source").add_argument("name", help="data set")
    for sub in commands.choices.values():
        sub.add_argument("--root", type=arguments.path, help=root_help)
    try:
        options = parser.parse_args(argv)
        root = resolve_root(options.root)
        there = next(path for path in (root, *root.parents) if path.exists())
        if not there.is_dir():
            raise DataError(f"data folder {root}: expected a directory, but {there} is none")
        if options.command == "list":
            _list(root)
        elif options.command == "info":
            _info(options.name, root)
        else:
            path = get(options.name, root)
            tell(f"written    {path}\nnext       python -m gmoe_ext.data info {options.name} --root {root}")
    except (GmoeError, OSError) as error:
        return report_error(error)
    return 0


def found(root: Path) -> dict[str, str]:
    """Find the data sets under ``root``: their names and what they are read from."""
    names = {path.name: f"{path.name}/raw" for path in root.glob("*") if is_raw_folder(path)}
    files = (path for path in sorted(root.glob("*.npz"), reverse=True) if "_split" not in path.stem)
    names |= {path.stem.removesuffix("_graphs"): path.name for path in files}
    return dict(sorted(names.items()))


def _list(root: Path) -> None:
    here = found(root)
    tell(f"root       {root}")
    for name in SYNTHETIC:
        if name not in here:
            tell(f"built in   {name}")
    for name, file in here.items():
        tell(f"present    {name:<24} {file}")
    for name in SOURCES:
        if name not in here:
            tell(f"available  {name:<24} python -m gmoe_ext.data get {name} --root {root}")


def _info(name: str, root: Path) -> None:
    data = read(name, root)
    tell(f"data       {data.name}: {data.summary()}")
    for file, digest in data.sha256.items():
        tell(f"sha256     {digest}  {file}")


if __name__ == "__main__":
    sys.exit(main())
