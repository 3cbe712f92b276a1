"""bench/device/run.sh as far as it goes without a GPU: with stand-ins for the compiler, the GPU's tools and Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

STAND_INS = {
    # What it "links" tells that there is no GPU where NO_GPU is set.
    "nvcc": """#!/bin/bash
        [ "$1" = --version ] && echo "Cuda compilation tools, release 13.0, V13.0.88" && exit
        while [ $# -gt 0 ]; do [ "$1" = -o ] && made=$2; shift; done
        printf '#!/bin/sh\\n[ -z "$NO_GPU" ] || exit 77\\necho kernel tests ran\\n' >"$made"; chmod +x "$made"
    """,
    "nvidia-smi": """#!/bin/bash
        case "$*" in *compute_cap*) echo 9.0 ;; *) echo "NVIDIA H100, 580.65" ;; esac
    """,
    "compute-sanitizer": """#!/bin/bash
        [ "$2" != synccheck ]
    """,
    "python": f"""#!/bin/bash
        case "$*" in
          -\\ *) exec {sys.executable} "$@" ;;
          *build_ext*) echo "arch $TORCH_CUDA_ARCH_LIST, cuda $FORCE_CUDA" ;;
          *bench.claims*training*) exit 3 ;;
          *) echo "python $*" ;;
        esac
    """,
}


def run(repository: Path, tmp_path: Path, **env: str) -> tuple[int, Path]:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in STAND_INS.items():
        (tools / name).write_text("\n".join(line.strip() for line in text.splitlines()) + "\n")
        (tools / name).chmod(0o755)
    path = os.pathsep.join([str(tools), os.environ["PATH"]])
    command = ["bash", str(repository / "bench/device/run.sh"), str(tmp_path / "out")]
    given = {**os.environ, "PATH": path, "PYTHON": str(tools / "python"), **env}
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, tmp_path / "out"


def test_a_step_that_fails_is_noted_and_the_next_one_runs(repository: Path, tmp_path: Path) -> None:
    code, out = run(repository, tmp_path)
    assert code == 1
    report = json.loads((out / "device.json").read_text())
    assert (report["device"], report["driver"], report["nvcc"]) == ("NVIDIA H100", "580.65", "13.0.88")
    failed = {name: step["exit_code"] for name, step in report["steps"].items() if not step["passed"]}
    assert failed == {"training": 3, "synccheck": 1}
    assert list(report["steps"])[:3] == ["build", "build_kernel_tests", "kernel_tests"]
    assert {"claims", "memcheck", "racecheck", "operators_memcheck", "operators_initcheck"} <= report["steps"].keys()
    log = (out / "run.log").read_text()
    assert "arch 9.0a, cuda 1" in log and "kernel tests ran" in log


def test_without_a_gpu_it_ends_when_all_is_built(repository: Path, tmp_path: Path) -> None:
    code, out = run(repository, tmp_path, NO_GPU="1", ARCH="sm_80")
    assert code == 77 and not (out / "device.json").exists()


def test_what_is_out_of_time_is_not_waited_for(repository: Path, tmp_path: Path) -> None:
    code, out = run(repository, tmp_path, BUDGET_S="1")
    assert code == 1
    steps = json.loads((out / "device.json").read_text())["steps"]
    assert {step["exit_code"] for step in steps.values()} == {124}


@pytest.mark.parametrize("arguments", [[], ["one", "two"]])
def test_it_says_how_it_is_called(repository: Path, arguments: list[str]) -> None:
    command = ["bash", str(repository / "bench/device/run.sh"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "bench/device/run.sh OUT" in done.stderr
