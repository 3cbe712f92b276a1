"""``python -m gmoe_ext.export RUN_DIR``: pack the best student of a training run into one file.

Exit codes: 0 done, 1 failed, 2 settings, 3 data.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError, DataError, GmoeError
from ..runtime import PackedStudent
from .compare import Comparison, compare, random_rows, read_rows
from .pack import WEIGHTS, Weights, pack
from .run import TrainedStudent, load_student

TOLERANCE = 1e-4  # of the largest logit: the file's float32 sums round in another order than the model's


def main(argv: Sequence[str] | None = None) -> int:
    """Pack; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m gmoe_ext.export", description="Pack the student of a run.")
    parser.add_argument("run_dir", type=Path, help="run directory of gmoe_ext.train")
    parser.add_argument("--output", type=Path, help="file to write (default: RUN_DIR/student.safetensors)")
    parser.add_argument("--format", choices=["packed"], default="packed", help="packed: for gmoe_ext.runtime")
    parser.add_argument("--dtype", choices=WEIGHTS, default="float32", help="how weights are stored")
    parser.add_argument(
        "--rows", type=Path, help="measure the file on these rows, too: .npz with x, nodes, y (classes)"
    )
    options = parser.parse_args(argv)
    output = options.output or options.run_dir / "student.safetensors"
    try:
        export(options.run_dir, output, options.dtype, options.rows)
    except (GmoeError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 3 if isinstance(error, DataError) else 1
    return 0


def export(run_dir: Path, output: Path, dtype: Weights = "float32", rows: Path | None = None) -> None:
    """Pack the best student of ``run_dir`` into ``output``, and hold the file against the model."""
    given = None if rows is None else read_rows(rows)
    student = load_student(run_dir)
    path = pack(
        student.model,
        output,
        class_names=student.class_names,
        normalize=student.normalize,
        positions=student.positions,
        dtype=dtype,
    )
    packed = PackedStudent.load(path)
    found = compare(student.model, packed, random_rows(packed))
    # Narrow weights may send a row to another expert, so only float32 has a bound.
    if dtype == "float32" and not found.largest_difference <= TOLERANCE:
        raise GmoeError(f"{path}: the packed student is not its model: {found}")
    on_given = None if given is None else compare(student.model, packed, given, student.positions)
    _report(student, packed, dtype, found, on_given)


def _report(
    student: TrainedStudent, packed: PackedStudent, dtype: Weights, found: Comparison, on_given: Comparison | None
) -> None:
    table = "none" if student.positions is None else f"{len(student.positions):,} nodes"
    print(f"student    {student.phase}, validation {student.val_best:.4f}, normalisation {student.normalize}")
    print(f"packed     {packed.path} ({packed.num_bytes / 1e6:.1f} MB, {dtype} weights, positions: {table})")
    print(f"random     {found}")
    if on_given is not None:
        print(f"given      {on_given}")
    print(f"next       from gmoe_ext.runtime import PackedStudent; PackedStudent.load({packed.path!r}).predict(x)")


if __name__ == "__main__":
    sys.exit(main())
