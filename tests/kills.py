"""Kill training runs at any moment and continue them: ``python -m tests.kills --kills 120``.

A round starts one of TASKS and ends it up to three times, by SIGKILL, SIGTERM, Ctrl-C or a disk that takes no more. It
continues the run with `--resume auto` each time, lets it finish, and compares it with a run that nobody disturbed.
Moments are drawn from --seed and the round's number. A signal comes before or after a call in the package's code or one
that changes files, or at a time on the clock (which does not repeat exactly). The disk fails every writing call from
the N-th on (ENOSPC, EROFS), or the system refuses longer files (RLIMIT_FSIZE): a write fails (EFBIG), or the process is
killed in the middle of it (SIGXFSZ). Exit code 1: there are differences; --out keeps their rounds.

Everything is imported once and every run is a fork of that process, so the imports and the interpreter's exit are left
out; `tests/train/test_kill.py` stops whole processes, too.
"""

from __future__ import annotations

import os

if __name__ == "__main__":  # before torch is imported: threads do not survive a fork
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import builtins
import errno
import importlib
import io
import json
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any, NamedTuple, NoReturn

from gmoe_ext import report
from gmoe_ext.train.__main__ import main as train
from tests.train.files import write_molecules, write_nodes

_HANG_S = 120.0
_PRINTED = 4096  # bytes of the longest file at least: what a run prints goes to a file, too
# What a run imports on its way; in every fork anew it would take most of its time, and most of the kills.
_IMPORTED = """gmoe_ext.train.command gmoe_ext.train.demo matplotlib.backends.backend_agg matplotlib.figure
gensim.models sklearn.cluster scipy.optimize safetensors.torch torch._dynamo docstring_parser PIL.JpegImagePlugin"""
_NODES = "--data.name tiny --train.epochs 4"
_MOLECULES = "--data.name tinymol --train.epochs 3 --train.batch_size 8"
_GMOE = "--model.name gmoe-gcn --model.hidden_dim 8 --model.num_experts 4 --model.num_hop1 2 --model.k 2"
_TAUGHT = f"""{_NODES} --train.batch_size 25 --teacher.model sage --teacher.hidden_dim 8 --student.hidden_dim 8
--distill.noise_draws 2 --distill.power_warmup 1
--distill.walk_length 5 --distill.num_walks 2 --distill.position_dim 4"""
_EXPERTS = "--student.num_experts 3 --student.k 2 --distill.pretrain_epochs 2 --distill.kmeans_restarts 1"
TASKS = {
    "nodes": f"{_NODES} --model.name gcn --model.hidden_dim 8",
    "nodes-gmoe": f"{_NODES} {_GMOE} --data.setting inductive --train.patience 2",
    "molecules": f"{_MOLECULES} {_GMOE}",
    "molecules-epoch": f"{_MOLECULES} --model.name gin --model.hidden_dim 8 --train.step_per epoch",
    "glnn": f"{_TAUGHT} --student.model mlp --distill.positions false --distill.reliable false",
    "krd": f"{_TAUGHT} --student.model mlp --distill.positions false",
    "mlp": f"{_TAUGHT} --student.model mlp --data.setting inductive",
    "ensemble": f"{_TAUGHT} --student.model ensemble --student.num_members 2",
    "moe": f"{_TAUGHT} {_EXPERTS} --student.model moe",
    "rbm": f"{_TAUGHT} {_EXPERTS} --student.model rbm",
    "rbm-released": f"{_TAUGHT} {_EXPERTS} --student.model rbm --distill.protocol released_code --train.batch_size 0",
    # Two networks, the better one of which teaches; the student is packed and served.
    "demo": f"{_TAUGHT} {_EXPERTS} --student.model rbm --model.name gcn --model.hidden_dim 8",
}
_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGXFSZ)
_CAUGHT = (signal.SIGTERM, signal.SIGINT)
_DISKS = (errno.ENOSPC, errno.EROFS, errno.EFBIG)
_WRITING = ("replace", "rename", "mkdir", "fsync", "pwrite", "ftruncate")
_OF_FILES = {open, os.open, os.replace, os.rename, os.fsync, os.unlink, os.mkdir, os.rmdir}
_PACKAGE = f"{os.sep}gmoe_ext{os.sep}"
_OF_THE_CLOCK = {"wall_s", "us_per_node", "commit"}


class Moment(NamedTuple):
    """When a signal comes or the disk takes no more: ``at`` counts calls, seconds or bytes, see ``kind``."""

    fault: str
    number: int  # of the signal or the error
    kind: str  # "call", "file", "clock"; of a disk: "disk", "size"
    at: float

    @property
    def of_the_disk(self) -> bool:
        """Whether it is no signal."""
        return self.fault in ("ENOSPC", "EROFS", "EFBIG")

    @property
    def kills(self) -> bool:
        """Whether the process ends on the spot."""
        return self.fault in ("SIGKILL", "SIGXFSZ")

    @classmethod
    def draw(cls, draw: Random, way: dict[str, float], left: float) -> tuple[Moment, float]:
        """Draw a moment on the rest of a way, and return it with the share of the way until then."""
        part, signum, number = draw.random() * left, draw.choice(_SIGNALS), draw.choice(_DISKS)
        if draw.random() < 0.25:
            kind, name = ("size" if number == errno.EFBIG else "disk"), errno.errorcode[number]
        else:
            kind, name, number = draw.choice(("call", "file", "clock")), signum.name, int(signum)
            kind = "size" if signum == signal.SIGXFSZ else kind
        at = part * way[kind]
        least = {"clock": 0.0, "size": _PRINTED}.get(kind, 1)
        return cls(name, number, kind, max(least, at if kind == "clock" else 1 + int(at))), part


class Ended(NamedTuple):
    """A run that ended: exit code (-N: by signal N), way by kind of moment, new temporary files, what it printed."""

    code: int
    hit: bool
    way: dict[str, float]
    left: list[str]
    out: str
    err: str


class Calls:
    """Counts the calls of the main thread, and sends this process a signal at one of them."""

    def __init__(self, moment: Moment | None) -> None:
        self.counts = {"call": 0, "file": 0}
        self._moment = moment

    def __call__(self, frame: FrameType, event: str, called: Any) -> None:
        """Take an event of `sys.setprofile`."""
        if _PACKAGE in frame.f_code.co_filename:
            self._count("call")
        if event in ("c_call", "c_return") and _changes_files(called):
            self._count("file")

    def _count(self, kind: str) -> None:
        self.counts[kind] += 1
        if self._moment is not None and kind == self._moment.kind and self.counts[kind] == self._moment.at:
            sys.setprofile(None)
            os.kill(os.getpid(), self._moment.number)


class Disk:
    """Stands between this process and the disk, and takes no more after a number of calls; only for a fork."""

    def __init__(self, moment: Moment | None) -> None:
        self.counts = {"disk": 0}
        self._moment = moment if moment is not None and moment.kind == "disk" else None
        for name in _WRITING:
            setattr(os, name, self._guard(getattr(os, name)))
        if self._moment is not None and self._moment.number == errno.EROFS:  # a full disk lets files go
            os.unlink = self._guard(os.unlink)
        builtins.open = io.open = self._guard(io.open, opens=True)
        if moment is not None and moment.kind == "size":
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(moment.at), resource.RLIM_INFINITY))
            if moment.kills:  # Python ignores it otherwise
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)

    def _guard(self, call: Callable[..., Any], opens: bool = False) -> Callable[..., Any]:
        def guarded(*args: Any, **options: Any) -> Any:
            if not opens or _opens_to_write(*args, **options):
                self.counts["disk"] += 1
                if self._moment is not None and self.counts["disk"] >= self._moment.at:
                    raise OSError(self._moment.number, os.strerror(self._moment.number))
            return call(*args, **options)

        return guarded


def _opens_to_write(file: Any, mode: str = "r", *_: Any, **__: Any) -> bool:
    return not isinstance(file, int) and bool(set(mode) & set("wax+"))  # a descriptor is open already


def _changes_files(called: Any) -> bool:
    if called.__name__ in ("write", "truncate", "close"):
        return isinstance(called.__self__, io.IOBase)
    return called.__name__ == "serialize_file" or called in _OF_FILES


def start(flags: Sequence[str], folder: Path, moment: Moment | None = None, count: bool = False) -> Ended:
    """Run training in a fork, with what it prints in files in ``folder``; end it at a moment, or count its calls."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"last.{name}" for name in ("out", "err", "way")}
    for path in files.values():
        path.write_text("")
    drafts, began = set(folder.rglob(".*tmp*")), time.monotonic()
    signal.pthread_sigmask(signal.SIG_BLOCK, _CAUGHT)
    child = os.fork()
    if child == 0:
        _train(flags, files, moment, count)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _CAUGHT)
    hit = False
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        passed = time.monotonic() - began
        if moment is not None and moment.kind == "clock" and not hit and passed >= moment.at:
            os.kill(child, moment.number)
            hit = True
        if passed > _HANG_S:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.001)
    status = os.waitstatus_to_exitcode(ended[1])
    way = json.loads(files["way"].read_text() or "{}")
    hit = status != 0 and moment is not None and (hit or moment.kind != "clock")
    left = sorted(str(path) for path in set(folder.rglob(".*tmp*")) - drafts)
    way["clock"] = time.monotonic() - began
    return Ended(status, hit, way, left, files["out"].read_text(), files["err"].read_text())


def _train(flags: Sequence[str], files: dict[str, Path], moment: Moment | None, count: bool) -> NoReturn:
    code = 1
    try:
        for number in _CAUGHT:  # until training has its own handlers, and once it has put them away
            signal.signal(number, lambda number, _: sys.exit(128 + number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _CAUGHT)
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(files[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), descriptor)
        calls = Calls(moment) if count or (moment and moment.kind in ("call", "file")) else None
        disk = Disk(moment) if count or (moment and moment.kind in ("disk", "size")) else None
        sys.setprofile(calls)
        code = train(flags)
        sys.setprofile(None)
        if calls and disk:
            files["way"].write_text(json.dumps(calls.counts | disk.counts))
    except SystemExit as asked:
        code = int(str(asked.code))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Bench:
    """Rounds of kills in a folder."""

    def __init__(self, folder: Path, seed: int, tasks: Sequence[str]) -> None:
        self.folder, self.seed, self.tasks = folder, seed, tasks
        self.kills: Counter[str] = Counter()
        self.disks: Counter[str] = Counter()
        self._whole: dict[str, Ended] = {}
        for module in _IMPORTED.split():
            importlib.import_module(module)
        write_nodes(folder / "data")
        write_molecules(folder / "data")

    def round(self, number: int) -> list[str]:
        """Kill, continue and compare one run; return what is wrong, one line each."""
        draw = Random(f"{self.seed} {number}")
        name = self.tasks[number % len(self.tasks)]
        whole, folder = self._undisturbed(name), self.folder / f"round-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        left, wrong = 1.0, []
        for _ in range(draw.randint(1, 3)):
            moment, part = Moment.draw(draw, whole.way, left)
            seconds = draw.choice((0, 0, 1000))
            ended = start(self._flags(name, folder, seconds), folder, moment)
            wrong += [f"{moment}: {text}" for text in _wrong_end(ended, moment, folder / "run")]
            if not ended.hit:
                break
            (self.disks if moment.of_the_disk else self.kills)[moment.fault] += 1
            left -= part if seconds == 0 else 0.0
        ended = start(self._flags(name, folder), folder)
        wrong += _wrong_end(ended, None, folder / "run")
        if ended.code == 0:
            wrong += differences(self.folder / name / "run", folder / "run")
        if not wrong:
            shutil.rmtree(folder)
        return [f"round {number}, {name}: {line}" for line in wrong]

    def _undisturbed(self, name: str) -> Ended:
        """Run a task twice, to count its calls and to take its time; both runs must be equal."""
        if name not in self._whole:
            ended, timed = (self._whole_run(name, place, place == name) for place in (name, f"{name}-again"))
            if found := differences(self.folder / name / "run", self.folder / f"{name}-again" / "run"):
                raise SystemExit(f"{name}: two undisturbed runs differ: {found}")
            size = max(path.stat().st_size for path in (self.folder / name / "run").rglob("*") if path.is_file())
            self._whole[name] = ended._replace(way={**ended.way, "clock": timed.way["clock"], "size": size})
        return self._whole[name]

    def _whole_run(self, name: str, place: str, count: bool) -> Ended:
        folder = self.folder / place
        shutil.rmtree(folder, ignore_errors=True)
        ended = start(self._flags(name, folder), folder, count=count)
        if wrong := _wrong_end(ended, None, folder / "run"):
            raise SystemExit(f"{name}: an undisturbed run fails: {wrong}")
        return ended

    def _flags(self, name: str, folder: Path, seconds: int = 0) -> list[str]:
        places = ("--data.root", str(self.folder / "data"), "--run_dir", str(folder / "run"), "--device", "cpu")
        return [*TASKS[name].split(), *places, "--train.checkpoint_s", str(seconds), "--resume", "auto"]


def _wrong_end(ended: Ended, moment: Moment | None, run: Path) -> list[str]:
    """What is wrong with how a run ended and what it left."""
    fault, codes, message = "", {0}, ""
    if moment is not None and ended.hit:
        fault = moment.fault
        codes = {2, 3} if moment.of_the_disk else {-moment.number if moment.kills else 128 + moment.number}
        if moment.of_the_disk:
            message = rf"error: [^\n]*{re.escape(str(run))}[^\n]*{os.strerror(moment.number)}[^\n]*\n  fix: [^\n]*\n"
    wrong = [] if ended.code in codes else [f"exit code {ended.code}, expected {codes}; {ended.out}"]
    if not re.fullmatch(message, ended.err):
        wrong.append(f"expected {message or 'no error'}, got {ended.err}")
    if fault not in ("SIGKILL", "SIGXFSZ", "EROFS") and ended.left:
        wrong.append(f"left behind: {ended.left}")
    return wrong


def differences(whole: Path, again: Path) -> list[str]:
    """Compare a continued run with an undisturbed one: settings, metrics, weights, results, names of files."""
    found = report.differences(whole, again)
    names = [{_name(path, run) for path in run.rglob("*") if path.is_file()} for run in (whole, again)]
    found += [f"only in one of them: {name}" for name in sorted(names[0] ^ names[1])]
    if found:
        return found
    results = [_timeless(json.loads((run / "result.json").read_text())) for run in (whole, again)]
    if results[0] != results[1]:
        found.append(f"result.json: {results[0]} | {results[1]}")
    others = [name for name in names[0] if name.endswith((".png", "student.safetensors"))]
    return found + [name for name in others if (whole / name).read_bytes() != (again / name).read_bytes()]


def _name(path: Path, run: Path) -> str:
    # How often a checkpoint was written before the last time, if at all, depends on the kills.
    return path.relative_to(run).as_posix().removesuffix(".previous")


def _timeless(record: Any) -> Any:
    if isinstance(record, list):
        return [_timeless(one) for one in record]
    if not isinstance(record, dict):
        return repr(record)  # by text, in which NaN equals NaN
    return {name: _timeless(value) for name, value in record.items() if name not in _OF_THE_CLOCK}


def main(argv: Sequence[str] | None = None) -> int:
    """Run rounds until there were enough kills and every task had its round."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=120, help="how many at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--round", type=int, help="this round alone, to see its differences again")
    parser.add_argument("--tasks", default=",".join(TASKS), help="which, separated by commas")
    parser.add_argument("--out", type=Path, default=Path("build/kills"))
    options = parser.parse_args(argv)
    tasks = options.tasks.split(",")
    if unknown := set(tasks) - set(TASKS):
        parser.error(f"--tasks: expected some of {', '.join(TASKS)}, got {', '.join(sorted(unknown))}")
    bench, wrong, number = Bench(options.out, options.seed, tasks), [], 0
    if options.round is not None:
        wrong, number = bench.round(options.round), 1
    while options.round is None and (bench.kills.total() < options.kills or number < len(tasks)):
        found = bench.round(number)
        print(*found, sep="\n", end="\n" if found else "", flush=True)
        wrong, number = wrong + found, number + 1
    kills, disks = (
        f"{found.total()} {what} ({', '.join(f'{count} {name}' for name, count in sorted(found.items()))})"
        for what, found in (("kills", bench.kills), ("disks that take no more", bench.disks))
    )
    print(f"{kills} and {disks} in {number} runs of {len(tasks)} tasks, {len(wrong)} differences")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
