"""The command line of training: one run, from flags and recipes to a run directory.

Exit codes: 0 done, 1 failed, 2 settings, 3 data or checkpoint, 130 and 143 interrupted with a checkpoint.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from .. import extras
from ..atomic_write import atomic_write
from ..data import MoleculeData
from ..errors import ConfigError, GmoeError, MissingExtraError
from ..terminal import Interrupted, Progress, Stop, catch_signals, report_error
from . import report
from .config import Config
from .device import describe_backend, keep_freed_memory, resolve
from .parse import default_directory, dump, parse, published
from .run import Run
from .tasks import distill, molecule, node
from .tasks.scene import load_data

# What a run leaves beside its settings. A packed student stays where it is served from until a new one replaces it.
_RESULTS = ("checkpoints", "metrics.jsonl", "result.json", "curves.png")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one job; returns the exit code."""
    progress = Progress()
    try:
        with catch_signals() as stop:
            config = parse(sys.argv[1:] if argv is None else argv, progress.line)
            keep_freed_memory()
            job(config, progress, stop)
        return 0
    except Interrupted as interrupted:
        progress.write(f"stopped    by {interrupted}; to continue, run the same command with --resume auto")
        return interrupted.exit_code
    except GmoeError as error:
        return report_error(error)


def job(config: Config, progress: Progress, stop: Stop) -> None:
    """Run what the settings ask for and report it."""
    from .. import __version__

    device = resolve(config.device)
    directory = Path(config.run_dir or default_directory(config))
    where = "dry run, writes nothing" if config.dry_run else str(directory)
    how = f"{describe_backend()} | {device} | {config.train.precision}"
    progress.write(f"gmoe_ext {__version__} | {how} | seed {config.seed} | {where}")
    check_extras(config)  # before an earlier run in the same place is moved away
    run = Run(config, directory, progress, stop)
    if not config.dry_run:
        prepare(config, directory)
    outcome = train(config, run, device)
    if config.dry_run:
        progress.write(f"dry run    everything works; a real run trains up to {config.train.epochs} epochs")
        return
    leave(config, run, outcome, device)


def check_extras(config: Config) -> None:
    """Import the optional libraries of a student now, rather than after its teacher's training.

    Raises:
        MissingExtraError: one is not installed.
    """
    if config.student.model is None:
        return
    needs = {
        "scipy.optimize": config.distill.reliable,  # first: the others need it, too
        "gensim.models": config.distill.positions,
        "sklearn.cluster": config.student.model == "rbm",
    }
    for module, needed in needs.items():
        if needed:
            extras.load(module)


def train(config: Config, run: Run, device: torch.device) -> report.Outcome:
    """Train what the settings and the data ask for: the demo, a distillation, or a network on molecules or nodes."""
    if config.student.model is not None:
        if config.teacher.model is None or config.model.name is None:
            return distill.distill(config, run, device).outcome()
        from . import demo  # packs and serves the student, so it needs the compiled runtime

        return demo.train(config, run, device)
    data = load_data(config)
    if isinstance(data, MoleculeData):
        return molecule.train(config, run, device, data)
    return node.train(config, run, device, data)


def prepare(config: Config, directory: Path) -> None:
    """Make the run directory ready: empty, or with what is to be continued.

    An earlier run in the same place is moved to `previous/`, replacing what was there.

    Raises:
        ConfigError: --resume names a path without checkpoints.
    """
    checkpoints = directory / "checkpoints"
    if config.resume not in ("auto", "never"):
        source = Path(config.resume)
        if source.suffix == ".safetensors":
            source = source.parent
        if source.name != "checkpoints":
            source = source / "checkpoints"
        if not any(source.glob("*.safetensors")):
            raise ConfigError(f"--resume {config.resume}: expected auto, never or a run directory with checkpoints")
        if source.resolve() != checkpoints.resolve():
            shutil.copytree(source, checkpoints, dirs_exist_ok=True)
            if (source.parent / "metrics.jsonl").exists():
                shutil.copy(source.parent / "metrics.jsonl", directory / "metrics.jsonl")
    elif config.resume == "never":
        _set_aside(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.yaml").write_text(dump(config))


def _set_aside(directory: Path) -> None:
    """Move what an earlier run left to `previous`, unless it left nothing but its settings."""
    found = [path for name in _RESULTS if (path := directory / name).exists()]
    if not found:
        return
    previous = directory / "previous"
    if previous.exists():
        shutil.rmtree(previous)
    previous.mkdir()
    for path in [*found, directory / "config.yaml"]:
        if path.exists():
            path.rename(previous / path.name)


def leave(config: Config, run: Run, outcome: report.Outcome, device: torch.device) -> None:
    """Write result.json and curves.png, and print the table of the run."""
    with atomic_write(run.directory / "result.json") as draft:
        draft.write_text(json.dumps(report.result_record(config, outcome, device), indent=2) + "\n")
    progress = run.progress
    progress.write("")
    for line in outcome.lines or report.table(outcome):
        progress.write(line)
    if figure := published(config):
        progress.line("published", str(figure))
    curves = run.directory / "curves.png"
    try:
        report.plot_curves(run.metrics_path, curves, outcome.main.fit.metric)
        drawn = str(curves)
    except MissingExtraError as error:
        drawn = f"not drawn: {error}"
    progress.line("curves", drawn)
    progress.line("metrics", f"{run.metrics_path}      result {run.directory / 'result.json'}")
    if outcome.next_command:
        progress.line("next", outcome.next_command)
