"""``python -m gmoe_ext.runtime --cflags --libs``: print compiler flags for a C program that serves a student.

``cc serve.c $(python -m gmoe_ext.runtime --cflags --libs)`` builds one; see ``docs/guides/c_api.md``. Without a flag it
prints what is installed, and with ``--student FILE`` what a student's file holds.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence

from .. import arguments
from ..errors import GmoeError
from ..terminal import report_error
from .student import PackedStudent, include_dir, library, library_dir


def main(argv: Sequence[str] | None = None) -> int:
    """Print, and return the exit code: 0 done, 1 not installed, 2 settings, 3 the student file cannot be read."""
    parser = arguments.Parser(prog="python -m gmoe_ext.runtime", description="Flags for C programs.")
    parser.add_argument("--cflags", action="store_true", help="print -I DIR, the directory of gmoe_runtime.h")
    parser.add_argument("--libs", action="store_true", help="print how to link with libgmoe_runtime, with its run path")
    parser.add_argument("--student", type=arguments.path, help="describe a packed student, as JSON")
    try:
        options = parser.parse_args(argv)
        if options.student is not None:
            arguments.check_file(options.student, "--student")
            print(json.dumps(PackedStudent.load(options.student).info(), indent=2, ensure_ascii=False))
            return 0
        include, libraries = str(include_dir()), str(library_dir())
    except (GmoeError, OSError) as error:
        return report_error(error)
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
