"""The command line of training: one run, from flags and recipes to a run directory.

Exit codes: 0 done, 1 failed, 2 settings, 3 data or checkpoint, 130 and 143 interrupted with a checkpoint.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from .. import extras
from ..atomic_write import atomic_write
from ..data import MoleculeData
from ..errors import ConfigError, GmoeError, MissingExtraError, WriteError
from ..terminal import Interrupted, Progress, Stop, catch_signals, report_error
from . import report
from .config import Config
from .device import describe_backend, keep_freed_memory, out_of_memory, resolve
from .directory import claimed, find_source, prepare
from .parse import default_directory, parse, published
from .run import Run
from .tasks import distill, molecule, node
from .tasks.scene import load_data


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
    except WriteError as error:
        return report_error(WriteError(f"{error}, with --resume auto"))
    except (GmoeError, OSError) as error:
        return report_error(error)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        first = str(error).partition("\n")[0]
        return report_error(
            ConfigError(f"out of memory: {first}\n  fix: smaller hidden_dim, num_experts or batch_size")
        )


def job(config: Config, progress: Progress, stop: Stop) -> None:
    """Run what the settings ask for and report it."""
    from .. import __version__

    device = resolve(config.device)
    find_source(config.resume)  # a dry run tells of a wrong one, too
    directory = Path(config.run_dir or default_directory(config))
    where = "dry run, writes nothing" if config.dry_run else str(directory)
    how = f"{describe_backend()} | {device} | {config.train.precision}"
    progress.write(f"gmoe_ext {__version__} | {how} | seed {config.seed} | {where}")
    check_extras(config)
    with ExitStack() as held:

        def claim(run: Run) -> None:
            held.enter_context(claimed(run.directory))
            prepare(run)

        run = Run(config, directory, progress, stop, None if config.dry_run else claim)
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
