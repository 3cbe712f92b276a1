"""Every setting with values that no run can work with: exit code 2 or 3, one error, no traceback."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from gmoe_ext.train.__main__ import main
from gmoe_ext.train.config import Config, flatten

from .files import write_molecules, write_nodes

VALUES = ("-1", "x", "1e400", "nan", "[1, 2]", "", "0", "-0.5", "2.5", "99999999999999999999", "null", "true", "{a: 1}")
KEYS = sorted(flatten(Config()))
TASKS = {
    "node": ("--data.name", "tiny", "--model.name", "gmoe-gcn"),
    "molecule": ("--data.name", "tinymol", "--model.name", "gmoe-gcn"),
    "distill": ("--data.name", "tiny", "--teacher.model", "sage", "--student.model", "rbm"),
}
NIGHTLY = os.environ.get("GMOE_EXT_PROPERTIES") == "nightly"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_nodes(folder)
    write_molecules(folder)
    return folder


# Every task sees every value at night; by day a setting meets one task and one value.
@pytest.mark.parametrize(
    ("key", "task"), [(k, t) for i, k in enumerate(KEYS) for j, t in enumerate(TASKS) if NIGHTLY or i % 3 == j]
)
def test_a_bad_value_is_refused_in_one_sentence(
    key: str, task: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # for a run_dir that is a number
    small = ("--device", "cpu", "--data.root", str(root), "--run_dir", str(tmp_path / "run"), "--dry_run")
    for value in VALUES if NIGHTLY else VALUES[KEYS.index(key) // 3 % 2 :][:1]:
        start = time.process_time()
        code = main([*small, *TASKS[task], f"--{key}={value}"])
        out, error = capsys.readouterr()
        assert code in (0, 2, 3), f"{key}={value}: exit code {code}: {error}"
        assert (code == 0) != error.startswith("error: "), f"{key}={value}: {error}"
        assert "Traceback" not in error + out
        assert error.count("\nerror: ") == 0 and len(error) < 2500
        assert code == 0 or time.process_time() - start < 2, (
            f"{key}={value}: refused only after {time.process_time() - start} s"
        )
