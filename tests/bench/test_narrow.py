"""The table of what narrow weights cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.narrow import main


def test_every_kind_of_weights_is_measured_on_the_run_s_own_nodes(
    distilled_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(distilled_run)])
    _, _, *lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[:2] for row in rows] == [["run", weights] for weights in ("float32", "bfloat16", "int8")]
    assert float(rows[0][3]) < 1e-5 and rows[0][4] == "100.000%" and rows[0][6] == "+0.00"
    assert all(1e-5 < float(row[3]) < 0.1 for row in rows[1:])
