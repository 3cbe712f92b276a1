"""Feed damaged files to a reader in a process of its own, with limits, and tell what came of each.

A reader must return or raise GmoeError. Everything else is a finding: another exception, a warning of NumPy's that a
value was lost, more memory or time than a file of a few kilobytes is worth, the death of the process.
"""

from __future__ import annotations

import base64
import contextlib
import faulthandler
import json
import mmap
import os
import re
import resource
import shutil
import signal
import struct
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from gmoe_ext.errors import GmoeError
from tests.mutation.damage import damage
from tests.mutation.targets import TARGETS, Target

MOST_BYTES = 512 << 20  # of address space, beside what reading the sound files took
MOST_CPU_S = 2.0  # a sound file takes 0.1 to 50 ms
_HANG_S = 60.0  # on the wall clock; a worker that is busy with one input for longer is killed
_MOST_MESSAGE = 3000
_FINISHED = b"finished\n"
_HIDDEN = re.compile(r"[^\n\t\x20-\x7e\u00a0-\ud7ff\ue000-\U0010ffff]")


@dataclass(frozen=True)
class Input:
    """One damaged file: which of the target's files it replaces, and its content."""

    file: str
    content: bytes


@dataclass(frozen=True)
class Finding:
    """An outcome that must not be; ``kind`` is the same for inputs that fail in the same place."""

    kind: str
    detail: str


CORPUS = Path(__file__).resolve().parents[1] / "corpus" / "damaged_files.jsonl"


def corpus() -> list[tuple[str, str, Input]]:
    """Inputs that once did harm: the target, what happened, and the input; the smallest known of its kind."""
    if not CORPUS.is_file():
        return []
    records = map(json.loads, CORPUS.read_text().splitlines())
    return [(r["target"], r["kind"], Input(r["file"], zlib.decompress(base64.b64decode(r["zlib"])))) for r in records]


def write_corpus(entries: Iterable[tuple[str, str, Input]]) -> None:
    """Write the corpus, a line of JSON per input."""
    CORPUS.parent.mkdir(exist_ok=True)
    lines = [
        {
            "target": name,
            "kind": kind,
            "file": given.file,
            "zlib": base64.b64encode(zlib.compress(given.content, 9)).decode(),
        }
        for name, kind, given in entries
    ]
    CORPUS.write_text("".join(json.dumps(line) + "\n" for line in lines))


class Bench:
    """A target's sound files in a folder, one of which is replaced at a time."""

    def __init__(self, name: str, folder: Path) -> None:
        self.target: Target = TARGETS[name]
        self.name, self.folder, self.scratch = name, folder / "sound", folder / "scratch"
        self.folder.mkdir(parents=True)
        self.target.make(self.folder)
        found = sorted(path for path in self.folder.glob(self.target.damaged) if path.is_file())
        self.sound = {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in found}
        assert self.sound, f"{name}: '{self.target.damaged}' names no file"

    def mend(self) -> None:
        """Put the sound files back after a worker died between changing and restoring one."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        for file, content in self.sound.items():
            (self.folder / file).write_bytes(content)

    def draw(self, seed: int, index: int) -> Input:
        """Return input number ``index``; it depends on the seed, the target and the number alone."""
        random = Random(f"{seed}/{self.name}/{index}")
        file = random.choice(list(self.sound))
        content = self.sound[file]
        if self.target.rewrites and random.random() < 0.5:
            content = random.choice(self.target.rewrites)(content, random)
            if random.random() < 0.7:
                return Input(file, content)
        return Input(file, damage(content, file, random))

    def feed(self, given: Input | None) -> bool:
        """Let the target read its files, one of them replaced; return whether they were accepted.

        Without an input it reads the sound files, and raises if they are refused.
        """
        path = self.folder / given.file if given else None
        if given and path:
            path.write_bytes(given.content)
        self.scratch.mkdir()
        try:
            self.target.feed(self.folder, self.scratch)
        except GmoeError as error:
            if given is None:
                raise
            _check_message(str(error), error)
            return False
        finally:
            shutil.rmtree(self.scratch)
            if given and path:
                path.write_bytes(self.sound[given.file])
        return True


class _Unclear(Exception):
    """An error on purpose whose message no terminal should be given."""


def _check_message(text: str, error: GmoeError) -> None:
    if not 0 < len(text) <= _MOST_MESSAGE:
        raise _Unclear("message of unreadable length") from error
    if _HIDDEN.search(text):
        raise _Unclear("control character in the message") from error


def outcome(bench: Bench, given: Input) -> bool | Finding:
    """Feed one input; return whether it was accepted, or what went wrong."""
    start = time.process_time()
    try:
        accepted = bench.feed(given)
    except Exception as error:
        return Finding(_place(error), "".join(traceback.format_exception(error))[-6000:])
    took = time.process_time() - start
    if took > MOST_CPU_S:
        return Finding("slow", f"{took:.1f} s of the processor")
    return accepted


def _place(error: BaseException) -> str:
    """Name the error's type and the last line of the package that it passed."""
    if isinstance(error, _Unclear) and error.__cause__ is not None:
        return f"{error} of {_place(error.__cause__)}"
    frames = traceback.extract_tb(error.__traceback__)
    last = ([frame for frame in frames if "/gmoe_ext/" in frame.filename] or frames)[-1]
    return f"{type(error).__name__} at {last.filename.rsplit('/gmoe_ext/', 1)[-1]}:{last.name}: {last.line}"


class Progress:
    """What a worker has done, in memory that outlives it: its current input, inputs accepted and refused."""

    _FORM = struct.Struct("qqqd")

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, self._FORM.size)
        self.set(0, 0, 0)

    def set(self, index: int, accepted: int, refused: int) -> None:
        self._shared[:] = self._FORM.pack(index, accepted, refused, time.monotonic())

    def get(self) -> tuple[int, int, int, float]:
        index, accepted, refused, started = self._FORM.unpack(self._shared[:])
        return index, accepted, refused, started


def forked(work: Callable[[], None], progress: Progress, log: Path) -> str | None:
    """Run ``work`` in a forked process with limits; return None, or how it died."""
    child = os.fork()
    if child == 0:
        try:
            _silence(log)
            work()
            os.write(2, _FINISHED)
        except BaseException:  # the parent is told by the log
            os.write(2, traceback.format_exc().encode(errors="replace"))
        finally:
            os._exit(0)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() - progress.get()[3] > _HANG_S:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return f"hang: more than {_HANG_S:.0f} s"
        time.sleep(0.02)
    return _death(log)


def _death(log: Path) -> str | None:
    text = log.read_bytes()
    return None if text.endswith(_FINISHED) else text[-4000:].decode(errors="replace") or "died without a word"


def _silence(log: Path) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    faulthandler.enable(2)  # type: ignore[arg-type]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Limit the address space to what is mapped now and MOST_BYTES more; NumPy's warnings become errors."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, before[1]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
