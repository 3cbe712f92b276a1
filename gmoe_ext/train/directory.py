"""The run directory: one run in it at a time, and what an earlier one left is continued or moved aside."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..atomic_write import atomic_write, remove_drafts, writing
from ..errors import ConfigError
from .parse import dump, load_recipe
from .run import Run

# What a run leaves beside its settings. A packed student stays where it is served from until a new one replaces it.
_RESULTS = ("checkpoints", "metrics.jsonl", "result.json", "curves.png")


@contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Make a run directory and keep other runs out of it; the system lets go of it when the process ends.

    Raises:
        ConfigError: it cannot be written to, or another run is in it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ConfigError(
            f"--run_dir {directory}: cannot be written to: {error.strerror}\n"
            "  fix: make space on that disk or the folder writable, or name another --run_dir"
        ) from error
    with open(descriptor, "r+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"--run_dir {directory}: another run is in it, {lock.read() or 'which has just started'}\n"
                "  fix: another --run_dir, or wait until it is done"
            ) from error
        with writing(directory / ".lock"):
            os.ftruncate(descriptor, 0)  # without a buffer, which closing the file would try to write once more
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield


def prepare(run: Run) -> None:
    """Make a claimed directory ready for a run: empty, or with what is to be continued.

    Everything is checked before anything is changed. An earlier run in the same place is moved to `previous/`,
    replacing what was there.

    Raises:
        ConfigError: --resume names a path without checkpoints, or a run of other settings or data; or the directory
            holds a run that did not start from that path.
        CheckpointError: a checkpoint to continue and the one before it are damaged.
    """
    directory, resume = run.directory, run.config.resume
    checkpoints = directory / "checkpoints"
    source = find_source(resume)
    if source is not None and checkpoints.exists() and source.resolve() != checkpoints.resolve():
        _check_continues(directory, resume)
        run.progress.line("resume", f"{directory} has continued {resume} already, and goes on from there")
        source = None
    if resume != "never":
        run.check(source or checkpoints)
    with writing(directory):
        for folder in (directory, checkpoints):
            remove_drafts(folder)
        if resume == "never":
            _set_aside(directory)
    with atomic_write(directory / "config.yaml") as draft:
        draft.write_text(dump(run.config))
    if source is not None and source.resolve() != checkpoints.resolve():
        if (source.parent / "metrics.jsonl").exists():
            with atomic_write(run.metrics_path) as draft:
                shutil.copy(source.parent / "metrics.jsonl", draft)
        with atomic_write(checkpoints) as draft:
            shutil.copytree(source, draft, ignore=shutil.ignore_patterns(".*"))


def find_source(resume: str) -> Path | None:
    """Find the checkpoints that --resume names by a run, by their folder, or by one of them; None: it names none.

    Raises:
        ConfigError: there are no checkpoints.
    """
    if resume in ("auto", "never"):
        return None
    source = Path(resume)
    if source.suffix == ".safetensors":
        source = source.parent
    if source.name != "checkpoints":
        source = source / "checkpoints"
    try:
        found = any(source.glob("*.safetensors"))
    except OSError as error:
        raise ConfigError(f"--resume {resume}: cannot be read: {error.strerror}") from error
    if not found:
        raise ConfigError(f"--resume {resume}: expected auto, never or a run directory with checkpoints")
    return source


def _check_continues(directory: Path, resume: str) -> None:
    """Refuse to continue a run in a directory that holds another."""
    settings = directory / "config.yaml"
    origin = load_recipe(settings).resume if settings.exists() else "never"
    if origin in ("auto", "never") or Path(origin).resolve() != Path(resume).resolve():
        raise ConfigError(
            f"--resume {resume}: --run_dir {directory} already holds another run\n"
            "  fix: another --run_dir, or --resume auto to go on with the run that is there"
        )


def _set_aside(directory: Path) -> None:
    """Move what an earlier run left to `previous`, unless it left nothing but its settings.

    A kill on the way loses nothing: the move is finished by the next run.
    """
    moving, previous = directory / ".previous", directory / "previous"
    found = [path for name in _RESULTS if (path := directory / name).exists()]
    if found:
        moving.mkdir(exist_ok=True)
        for path in [*found, directory / "config.yaml"]:
            if path.exists():
                path.rename(moving / path.name)
    if moving.exists():
        if previous.exists():
            shutil.rmtree(previous)
        moving.rename(previous)
