"""The form of answers, chosen by the output's name: .csv and .parquet hold classes, .npy holds logits."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

CHOSEN = np.dtype([("class", "<i4"), ("probability", "<f4")])  # class -1: the row was bad
OUTPUTS = (".csv", ".npy", ".parquet")


def record_dtype(suffix: str, outputs: int) -> np.dtype[Any]:
    """Return the dtype of the record that is kept of each row until the output is written."""
    return np.dtype(("<f4", (outputs,))) if suffix == ".npy" else CHOSEN


def to_records(record: np.dtype[Any], logits: NDArray[np.float32]) -> NDArray[Any]:
    """Convert logits [N, C] to records [N]; the logits of a bad row are NaN."""
    if record is not CHOSEN:
        return logits.astype("<f4", copy=False)
    good = np.all(np.isfinite(logits), axis=1)
    known = np.where(good[:, None], logits, 0)
    chosen = np.zeros(len(logits), CHOSEN)
    best = known.argmax(1)
    # The softmax of the largest logit is 1 / sum exp(l - max).
    largest = known[np.arange(len(known)), best]
    chosen["class"] = np.where(good, best, -1)
    chosen["probability"] = np.where(good, 1 / np.exp(known - largest[:, None]).sum(1), np.nan)
    return chosen


def csv_header(classes: Sequence[str] | None) -> str:
    """Return the first line of a .csv output."""
    return "row,class,probability" + (",name" if classes else "") + "\n"


def csv_lines(begin: int, chosen: NDArray[Any], classes: Sequence[str] | None) -> str:
    """Return the .csv lines of the rows from ``begin`` on; a bad row has only its number."""
    text = io.StringIO()
    write = csv.writer(text, lineterminator="\n").writerow
    for row, (kind, probability) in enumerate(chosen.tolist(), begin):
        name = [] if not classes else [classes[kind] if kind >= 0 else ""]
        write([row, kind, f"{probability:.6f}", *name] if kind >= 0 else [row, "", "", *name])
    return text.getvalue()


def write_csv(file: IO[bytes], records: Iterable[NDArray[Any]], classes: Sequence[str] | None) -> None:
    """Write row, class, probability and, if classes have names, the name."""
    file.write(csv_header(classes).encode())
    row = 0
    for some in records:
        file.write(csv_lines(row, some, classes).encode())
        row += len(some)


def write_npy(file: IO[bytes], records: Iterable[NDArray[Any]], rows: int, outputs: int) -> None:
    """Write logits [rows, outputs] in float32."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, outputs)}
    np.lib.format.write_array_header_1_0(file, header)
    for some in records:
        file.write(some.tobytes())
