"""The CUDA kernels without a GPU: they run right in the host executor, and nvcc compiles them without a spill."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TOOLS = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PATH": TOOLS, "CMAKE_BUILD_PARALLEL_LEVEL": os.environ.get("MAX_JOBS", "2")}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def require(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool, path=TOOLS) is None:
            pytest.skip(f"needs '{tool}'")


def test_kernels_give_the_same_bits_in_every_order_and_need_their_barriers(repository: Path) -> None:
    require("cmake", "ninja")
    if platform.machine() not in {"x86_64", "AMD64"}:
        pytest.skip("the host executor switches stacks by x86-64 assembly")
    done = run("cmake", "--workflow", "--preset", "cuda", cwd=repository)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    assert "100% tests passed" in done.stdout


def test_kernels_compile_for_both_targets_without_spills(repository: Path, tmp_path: Path) -> None:
    require("nvcc", "c++filt")
    done = run(sys.executable, "-m", "bench.cuda_resources", "--out", str(tmp_path / "resources.json"), cwd=repository)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    assert "0 with spills or local memory" in done.stdout


def test_program_for_a_gpu_compiles(repository: Path, tmp_path: Path) -> None:
    require("nvcc", "bash")
    program = str(repository / "bench/device/tests_main.cpp")
    flags = ("-std=c++20", "-Icsrc", "-Xcompiler", "-Wall,-Wextra,-Werror")
    done = run("nvcc", *flags, "-c", program, "-o", str(tmp_path / "tests_main.o"), cwd=repository)
    assert done.returncode == 0, done.stderr[-4000:]
    assert run("bash", "-n", "bench/device/run.sh", cwd=repository).returncode == 0
