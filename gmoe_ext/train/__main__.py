"""`python -m gmoe_ext.train`, see `command`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one job; returns the exit code."""
    from .command import main as run

    return run(argv)


if __name__ == "__main__":
    # OpenMP reads this when torch loads it. Threads that spin while they wait for each other are a little quicker on
    # idle cores and more than ten times slower on shared ones.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    sys.exit(main())
