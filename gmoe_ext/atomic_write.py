"""Write files that appear whole or not at all: a draft beside the target is renamed onto it at the end."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield the path of a draft that replaces ``path`` when the block ends without an error.

    The block creates the draft, as a file or as a directory, and closes it. A kill at any moment leaves the old target
    or the new one, never half of one; after an error the draft is removed and the target is untouched.

    Args:
        path: the target; its directory is created if needed. An existing file is replaced, an existing directory that
            is not empty is an error.

    Examples:
        >>> with atomic_write(Path("result.json")) as draft:
        ...     draft.write_text("{}")
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield draft
        if draft.is_file():
            with draft.open("rb+") as file:
                os.fsync(file.fileno())
        draft.replace(path)
    finally:
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)
