"""``python -m gmoe_ext.predict``, see `command`."""

from __future__ import annotations

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
