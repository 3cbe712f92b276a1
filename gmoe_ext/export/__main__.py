"""``python -m gmoe_ext.export RUN_DIR``: pack the best student of a training run into one file.

Exit codes: 0 done, 1 failed, 2 settings, 3 data.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..errors import ConfigError, DataError, GmoeError
from ..models.registry import Model
from ..runtime import PackedStudent
from .pack import pack
from .run import load_student

CHECKED_ROWS = 256
TOLERANCE = 1e-4  # of the largest logit: the file's sums round in another order than the model's


def main(argv: Sequence[str] | None = None) -> int:
    """Pack; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m gmoe_ext.export", description="Pack the student of a run.")
    parser.add_argument("run_dir", type=Path, help="run directory of gmoe_ext.train")
    parser.add_argument("--output", type=Path, help="file to write (default: RUN_DIR/student.safetensors)")
    parser.add_argument("--format", choices=["packed"], default="packed", help="packed: for gmoe_ext.runtime")
    options = parser.parse_args(argv)
    try:
        export(options.run_dir, options.output or options.run_dir / "student.safetensors")
    except (GmoeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 3 if isinstance(error, DataError) else 1
    return 0


def export(run_dir: Path, output: Path) -> None:
    """Pack the best student of ``run_dir`` into ``output``, and hold the file against the model."""
    student = load_student(run_dir)
    path = pack(
        student.model,
        output,
        class_names=student.class_names,
        normalize=student.normalize,
        positions=student.positions,
    )
    packed = PackedStudent.load(path)
    difference = disagreement(student.model, packed)
    if not difference <= TOLERANCE:
        raise GmoeError(
            f"{path}: the packed student's logits differ from the model's by {difference:.3g} of the largest"
        )
    table = "none" if student.positions is None else f"{len(student.positions):,} nodes"
    print(f"student    {student.phase}, validation {student.val_best:.4f}, normalisation {student.normalize}")
    print(f"packed     {path} ({packed.num_bytes / 1e6:.1f} MB, positions: {table}), off by {difference:.1e} at most")
    print(f"next       from gmoe_ext.runtime import PackedStudent; PackedStudent.load({str(path)!r}).predict(x)")


def disagreement(model: Model, packed: PackedStudent) -> float:
    """Largest difference of logits on random rows, as a share of the largest logit."""
    info = packed.info()
    rows = np.random.default_rng(0).standard_normal((CHECKED_ROWS, info["layers"][0]["in"]), np.float32)
    features = info["features"]
    prepared = torch.from_numpy(rows.copy())
    if features["normalize"] == "row_l1":
        columns = prepared[:, : features["columns"]]
        columns /= columns.abs().sum(1, keepdim=True)
    with torch.inference_mode():
        expected = model(prepared).logits.numpy()
    return float(np.abs(packed.predict(rows) - expected).max() / np.abs(expected).max())


if __name__ == "__main__":
    sys.exit(main())
