"""`python -m gmoe_ext.predict --student FILE --input ROWS`: answer rows with a packed student, without torch.

Rows come from .npy, .npz (array "x", optionally "nodes") or .csv (numbers, one row a line). Answers go to standard
output, or to --output: .npy holds the logits, .csv the class, its probability and its name if classes have names.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError, DataError, GmoeError
from .runtime import PackedStudent

Rows = tuple[NDArray[Any], NDArray[Any] | None]


def read_rows(path: Path) -> Rows:
    """Rows [N, D] and, from an .npz that has them, their nodes [N].

    Raises:
        DataError: the file is missing, damaged, of an unknown kind or not a table of numbers.
    """
    readers = {".npy": _read_npy, ".npz": _read_npz, ".csv": _read_csv}
    if path.suffix not in readers:
        raise DataError(f"--input {path}: expected a file named *.npy, *.npz or *.csv")
    if not path.is_file():
        raise DataError(f"--input {path}: no such file")
    try:
        x, nodes = readers[path.suffix](path)
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"--input {path}: {error}") from error
    if x.ndim == 1:
        x = x[None]
    if x.ndim != 2 or x.dtype.kind not in "fiub":
        raise DataError(f"--input {path}: expected numbers of shape [rows, features], got {x.dtype} {list(x.shape)}")
    return x, nodes


def _read_npy(path: Path) -> Rows:
    return np.load(path, allow_pickle=False), None


def _read_npz(path: Path) -> Rows:
    with np.load(path, allow_pickle=False) as file:
        return file["x"], file.get("nodes")


def _read_csv(path: Path) -> Rows:
    return np.loadtxt(path, delimiter=",", dtype=np.float32, ndmin=2), None


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities [N, C] of logits [N, C]."""
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    proba: NDArray[np.float32] = shifted / shifted.sum(1, keepdims=True)
    return proba


def answer_lines(logits: NDArray[np.float32], classes: Sequence[str] | None) -> list[str]:
    """The answers as csv: a header, then row, class, probability and, where classes have names, the name."""
    chosen = logits.argmax(1)
    proba = softmax(logits)[np.arange(len(chosen)), chosen]
    lines = ["row,class,probability" + (",name" if classes else "")]
    for row, (kind, p) in enumerate(zip(chosen, proba, strict=True)):
        lines.append(f"{row},{kind},{p:.6f}" + (f",{classes[kind]}" if classes else ""))
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Answer the rows of a file; returns the exit code (0 done, 2 settings, 3 data)."""
    parser = argparse.ArgumentParser(prog="python -m gmoe_ext.predict", description=__doc__)
    parser.add_argument("--student", type=Path, required=True, help="file written by export.pack")
    parser.add_argument("--input", type=Path, required=True, help="rows: .npy, .npz or .csv")
    parser.add_argument("--output", type=Path, help="answers: .npy (logits) or .csv; standard output if not given")
    args = parser.parse_args(argv)
    try:
        _run(args.student, args.input, args.output)
        return 0
    except (GmoeError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 3


def _run(student_path: Path, rows_path: Path, output: Path | None) -> None:
    if output is not None and output.suffix not in (".npy", ".csv"):
        raise ConfigError(f"--output {output}: expected a file named *.npy or *.csv")
    student = PackedStudent.load(student_path)
    x, nodes = read_rows(rows_path)
    logits = student.predict(x, nodes)
    if output is not None and output.suffix == ".npy":
        np.save(output, logits)
    elif output is not None:
        output.write_text("\n".join(answer_lines(logits, student.classes)) + "\n")
    else:
        print("\n".join(answer_lines(logits, student.classes)))


if __name__ == "__main__":
    sys.exit(main())
