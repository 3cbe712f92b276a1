"""Write files that appear whole or not at all: a draft beside the target is renamed onto it at the end."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ConfigError, WriteError

# A disk that is full or cannot be written to; whatever else fails in a block may be a file or an address it reads.
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_DRAFT = re.compile(r"\..+\.(?P<host>[^.]+)-(?P<process>\d+)-[0-9a-f]{8}\.tmp")


@contextmanager
def atomic_write(path: Path, keep: Path | None = None) -> Iterator[Path]:
    """Yield the path of a draft that replaces ``path`` when the block ends without an error.

    The block creates the draft, as a file or as a directory, and closes it. A kill at any moment leaves the old target
    or the new one, never half of one; after an error the draft is removed and the target is untouched. Drafts that
    killed processes left in the same directory are removed first.

    Args:
        path: the target; its directory is created if needed. An existing file is replaced, an existing directory that
            is not empty is an error.
        keep: where the replaced file goes, None drops it. A kill between the two moves leaves it there.

    Raises:
        ConfigError: the target is a device, a pipe or a socket, which the draft would replace.
        WriteError: the disk is full or read-only, or the directory cannot be written to.

    Examples:
        >>> with atomic_write(Path("result.json")) as draft:
        ...     draft.write_text("{}")
    """
    if _is_special(path):
        raise ConfigError(f"{path}: expected a file to write, got a device, a pipe or a socket")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_drafts(path.parent)
    draft = path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        try:
            yield draft
        except OSError as error:
            if error.errno not in _OF_THE_DISK and error.filename != str(draft):
                raise
            raise _write_error(path, error) from error
        with writing(path):
            if draft.is_file():
                with draft.open("rb+") as file:
                    os.fsync(file.fileno())
            if keep is not None and path.exists():
                path.replace(keep)
            draft.replace(path)
    finally:
        with writing(path):
            _remove(draft)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of a block that does nothing but write a file into one that names it and says what to do.

    Raises:
        WriteError: the block raised an OSError.
    """
    try:
        yield
    except WriteError:  # of a file that is written on the way to this one
        raise
    except OSError as error:
        raise _write_error(path, error) from error


def _write_error(path: Path, error: OSError) -> WriteError:
    return WriteError(
        f"{path} cannot be written: {error.strerror or error}\n"
        "  fix: make space on that disk or its folder writable, and repeat the command"
    )


def remove_drafts(directory: Path) -> None:
    """Remove the drafts in a directory whose process, on this machine, is gone."""
    for path in directory.glob(".*.tmp"):
        named = _DRAFT.fullmatch(path.name)
        if named and named["host"] == _host() and not _runs(int(named["process"])):
            _remove(path)


def _host() -> str:
    return socket.gethostname().partition(".")[0]


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_special(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()


def refuse_input(path: Path, option: str, *inputs: Path) -> None:
    """Check that a file to be written is none of the files that are read, by whatever name, and can be written.

    Raises:
        ConfigError: it is one of them, a directory, a device, or in a directory that does not exist.
    """
    if path.is_dir():
        raise ConfigError(f"{option} {path}: expected a file, got a directory")
    if _is_special(path):
        raise ConfigError(f"{option} {path}: expected a file, got a device, a pipe or a socket")
    if not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: there is no directory {path.parent}")
    for given in inputs:
        if path.exists() and given.exists() and path.samefile(given):
            raise ConfigError(f"{option} {path} is the input {given}; name another file")
