"""Report a run: result.json, curves.png and the table printed at its end."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import _native, extras
from ..atomic_write import atomic_write
from ..data import MoleculeData, NodeData
from ..models.registry import Model
from .config import Config, config_hash
from .fit_state import FitResult


class Trained(NamedTuple):
    """One trained model of a run, with the result of its fit."""

    model: Model
    fit: FitResult

    def record(self) -> dict[str, Any]:
        """Return its entries in result.json."""
        active, total = self.model.num_parameters()
        fit = dataclasses.asdict(self.fit) | {"wall_s": round(self.fit.wall_s, 3)}
        scores = {name: value for name, value in fit.items() if name not in ("phase", "metric")}
        sizes = {"params_total": total, "params_active": active}
        # The options are what `models.build` builds the network from, defaults included.
        return {"model": self.model.name, **scores, **sizes, "options": self.model.config}


@dataclass
class Outcome:
    """What a run reports.

    Attributes:
        main: the model the run is about (the student of a distillation).
        data: what it was trained on.
        teacher: the model it was distilled from.
        others: further models of the run, in order.
        extra: further entries of result.json.
        lines: lines to print instead of `table`.
        next_command: a command to suggest to the user.
    """

    main: Trained
    data: NodeData | MoleculeData
    teacher: Trained | None = None
    others: list[Trained] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    next_command: str = ""


def result_record(config: Config, outcome: Outcome, device: torch.device) -> dict[str, Any]:
    """Return the content of result.json; scores are fractions (accuracy, rocauc) or in the label's unit (rmse)."""
    from .. import __version__
    from .parse import published  # the loop and its tasks also run without jsonargparse

    main, figure = outcome.main, published(config)
    record: dict[str, Any] = {
        "dataset": config.data.name,
        "setting": config.data.setting,
        "seed": config.seed,
        "metric": main.fit.metric,
        **main.record(),
        "split": outcome.data.split,
        "version": __version__,
        "recipe": config.recipe,
        "published": None if figure is None else dataclasses.asdict(figure),
        "config_hash": config_hash(config),
        "data_sha256": dict(outcome.data.sha256),
        "commit": commit(),
        "device": str(device),
        "backend": _native.backend(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    if outcome.teacher is not None:
        record["teacher"] = outcome.teacher.record()
    if outcome.others:
        record["others"] = [one.record() for one in outcome.others]
    return record | outcome.extra


def commit() -> str | None:
    """Return the commit of the source tree this package runs from ("-dirty" if changed); None if it is installed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def plot_curves(metrics: Path, path: Path, metric: str) -> None:
    """Draw loss and scores over the epochs, one column per phase.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    phases: dict[str, list[dict[str, Any]]] = {}
    for record in map(json.loads, metrics.read_text().splitlines()):
        phases.setdefault(record["phase"], []).append(record)
    figure = extras.load("matplotlib.figure").Figure(figsize=(4 * len(phases), 5), layout="constrained")
    axes = figure.subplots(2, len(phases), squeeze=False, sharex="col")
    for column, (phase, records) in enumerate(phases.items()):
        epochs = [record["epoch"] for record in records]
        upper, lower = axes[0][column], axes[1][column]
        upper.plot(epochs, [record["loss"] for record in records], color="black")
        upper.set_title(phase)
        for name, color in (("val", "tab:blue"), ("test", "tab:orange")):
            scored = [(record["epoch"], record[name]) for record in records if name in record]
            lower.plot(*zip(*scored, strict=True), color=color, label=name)
        lower.set_xlabel("epoch")
        lower.legend()
    axes[0][0].set_ylabel("training loss")
    axes[1][0].set_ylabel(metric)
    with atomic_write(path) as draft:
        figure.savefig(draft, dpi=120, format="png")


def table(outcome: Outcome) -> list[str]:
    """Return the table of a run, one line per model."""
    rows = [*outcome.others, *([outcome.teacher] if outcome.teacher else []), outcome.main]
    metric = outcome.main.fit.metric
    header = ("model", f"val {metric}", "test at best val", "test best", "epoch", "params active/total", "seconds")
    lines: list[tuple[str, ...]] = [header]
    for model, fit in rows:
        scores = (f"{value:.3f}" for value in (fit.val_best, fit.test_at_best_val, fit.test_best))
        lines.append((model.name, *scores, f"{fit.best_epoch}/{fit.epochs}", sizes(model), f"{fit.wall_s:.1f}"))
    return align(lines)


def sizes(model: Model) -> str:
    """The numbers of parameters, "ACTIVE/TOTAL"."""
    return "/".join(f"{count:,}" for count in model.num_parameters())


def align(rows: list[tuple[str, ...]]) -> list[str]:
    """Pad columns to equal width, two blanks apart."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
