"""``python -m gmoe_ext.runtime --cflags --libs``: the compiler's flags for a C program that serves a packed student.

``cc serve.c $(python -m gmoe_ext.runtime --cflags --libs)`` builds one; see ``docs/guides/c_api.md``. Without a flag it
prints what is installed, and with ``--student FILE`` what a student's file holds.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence

from ..errors import GmoeError
from . import PackedStudent, include_dir, library_dir
from ._library import library


def main(argv: Sequence[str] | None = None) -> int:
    """Print; returns the exit code (0 done, 1 not installed, 3 the student's file)."""
    parser = argparse.ArgumentParser(prog="python -m gmoe_ext.runtime", description="Flags for C programs.")
    parser.add_argument("--cflags", action="store_true", help="where gmoe_runtime.h is: -I DIR")
    parser.add_argument("--libs", action="store_true", help="how to link with libgmoe_runtime, found again at run time")
    parser.add_argument("--student", help="describe a packed student, as JSON")
    options = parser.parse_args(argv)
    try:
        if options.student is not None:
            print(json.dumps(PackedStudent.load(options.student).info(), indent=2, ensure_ascii=False))
            return 0
        include, libraries = str(include_dir()), str(library_dir())
    except (GmoeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3 if options.student is not None else 1
    if not (options.cflags or options.libs):
        print(f"runtime {library.__version__} ({library.cpu_capability()}), no torch")
        print(f"header  {include}/gmoe_runtime.h\nlibrary {libraries}/libgmoe_runtime.so")
        return 0
    flags = [f"-I{include}"] if options.cflags else []
    if options.libs:
        flags += [f"-L{libraries}", "-lgmoe_runtime", f"-Wl,-rpath,{libraries}"]
    print(shlex.join(flags))
    return 0


if __name__ == "__main__":
    sys.exit(main())
