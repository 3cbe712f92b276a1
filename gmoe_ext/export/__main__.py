"""``python -m gmoe_ext.export RUN_DIR``: write the best student of a training run into a file.

Exit codes: 0 done, 1 failed, 2 settings, 3 data.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from .. import arguments, extras
from ..atomic_write import atomic_write, refuse_input
from ..errors import ConfigError, DataError, GmoeError
from ..runtime import PackedStudent
from ..terminal import report_error, tell
from .compare import Served, compare, random_rows, read_rows
from .fold import Content
from .graphs import load_onnx, load_pt2, save_onnx, save_pt2
from .pack import WEIGHTS, Weights, pack
from .run import TrainedStudent, load_student

TOLERANCE = 1e-4  # of the largest logit: float32 sums round in a different order than the model's
Format = Literal["packed", "onnx", "pt2"]
FILES: dict[Format, str] = {"packed": "student.safetensors", "onnx": "student.onnx", "pt2": "student.pt2"}
_NEXT = {
    "packed": "from gmoe_ext.runtime import PackedStudent; PackedStudent.load({path!r}).predict(x)",
    "onnx": "import onnxruntime; onnxruntime.InferenceSession({path!r}).run(['logits'], {inputs})",
    "pt2": "import torch; torch.export.load({path!r}).module()({names})",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Export, and return the exit code."""
    parser = arguments.Parser(prog="python -m gmoe_ext.export", description="Write the best student of a run.")
    parser.add_argument("run_dir", type=arguments.path, help="run directory written by gmoe_ext.train")
    parser.add_argument("--output", type=arguments.path, help="file to write (default: RUN_DIR/student.*)")
    parser.add_argument(
        "--format",
        choices=FILES,
        default="packed",
        help="packed: for gmoe_ext.runtime (default); onnx: a graph for ONNX Runtime; pt2: a torch.export archive",
    )
    parser.add_argument("--dtype", choices=WEIGHTS, default="float32", help="type of the weights; packed files only")
    parser.add_argument(
        "--rows", type=arguments.path, help="also compare on these rows: .npz with x, nodes, y (classes)"
    )
    parser.add_argument(
        "--feature_names",
        type=arguments.path,
        help="text file: names of the feature columns in their order, one per line",
    )
    try:
        options = parser.parse_args(argv)
        output = options.output or options.run_dir / FILES[options.format]
        export(options.run_dir, output, options.format, options.dtype, options.rows, options.feature_names)
    except (GmoeError, ValueError, OSError) as error:
        return report_error(error)
    return 0


def export(
    run_dir: Path,
    output: Path,
    format: Format = "packed",
    dtype: Weights = "float32",
    rows: Path | None = None,
    feature_names: Path | None = None,
) -> None:
    """Write the best student of ``run_dir`` into ``output``, if the file compares well with the model."""
    if format != "packed" and dtype != "float32":
        raise ConfigError(f"--dtype {dtype} is only for --format packed; {format} files are float32")
    if format == "onnx":
        extras.load("onnxruntime")  # before anything is written
    given_files = {"--rows": rows, "--feature_names": feature_names}
    inputs = {option: path for option, path in given_files.items() if path is not None}
    for option, path in inputs.items():
        arguments.check_file(path, option)
    records = (run_dir / name for name in ("config.yaml", "metrics.jsonl", "result.json"))
    refuse_input(output, "--output", *(run_dir / "checkpoints").glob("*"), *records, *inputs.values())
    given = None if rows is None else read_rows(rows)
    names = None if feature_names is None else _read_names(feature_names)
    student = load_student(run_dir)
    if given is not None:
        given.check(student.model.config["out_dim"], 0 if student.positions is None else len(student.positions))
    with atomic_write(output) as draft:  # an older file stays unless this one is right
        served = _write(student, draft, format, dtype, names)
        # A graph with a position table takes nodes; a packed student also takes rows that contain their positions.
        table = None if format == "packed" else student.positions
        found = compare(student.model, served, random_rows(served, table), table)
        # Narrow weights may route a row to another expert, so only float32 has a bound.
        if not found.largest_difference <= (TOLERANCE if dtype == "float32" else math.inf):
            raise GmoeError(f"{output}: the exported student differs from its model: {found}")
        on_given = None if given is None else compare(student.model, served, given, student.positions)
    fed = ["x"] if student.positions is None else ["x", "nodes"]
    feed = "{" + ", ".join(f"'{name}': {name}" for name in fed) + "}"
    nodes = "none" if student.positions is None else f"{len(student.positions):,} nodes"
    normalize, size = student.content["normalize"], output.stat().st_size / 1e6
    tell(f"student    {student.phase}, validation {student.val_best:.4f}, normalisation {normalize}")
    tell(f"{format:10} {output} ({size:.1f} MB, {dtype} weights, positions: {nodes})")
    tell(f"random     {found}")
    if on_given is not None:
        tell(f"given      {on_given}")
    tell("next       " + _NEXT[format].format(path=str(output), names=", ".join(fed), inputs=feed))


def _read_names(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--feature_names {path}: expected a text in UTF-8, a name a line ({error})") from error


def _write(
    student: TrainedStudent, output: Path, format: Format, dtype: Weights, feature_names: list[str] | None
) -> Served:
    content: Content = {**student.content, "feature_names": feature_names}
    if format == "onnx":
        return load_onnx(save_onnx(student.model, output, **content))
    if format == "pt2":
        return load_pt2(save_pt2(student.model, output, **content))
    return PackedStudent.load(pack(student.model, output, dtype=dtype, **content))


if __name__ == "__main__":
    sys.exit(main())
