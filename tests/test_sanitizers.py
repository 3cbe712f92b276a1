"""Core and the serving runtime in C++, without torch: no fault of memory or undefined behaviour in their tests."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

TOOLS = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
COMPILER = shlex.split(os.environ.get("CXX", "c++"))


def run(*command: str, cwd: Path, text: str = "") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PATH": TOOLS, "CMAKE_BUILD_PARALLEL_LEVEL": os.environ.get("MAX_JOBS", "2")}
    return subprocess.run(command, cwd=cwd, env=env, input=text, capture_output=True, text=True, check=False)


def links_sanitizers(directory: Path) -> bool:
    flags = ("-fsanitize=address,undefined", "-x", "c++", "-", "-o", "probe")
    return run(*COMPILER, *flags, cwd=directory, text="int main() {}").returncode == 0


def test_core_is_clean_under_address_and_undefined_behavior_sanitizer(repository: Path, tmp_path: Path) -> None:
    for tool in (COMPILER[0], "cmake", "ninja"):
        if shutil.which(tool, path=TOOLS) is None:
            pytest.skip(f"needs '{tool}'")
    if not links_sanitizers(tmp_path):
        pytest.skip(f"'{COMPILER[0]}' finds no sanitizers; most systems call their packages libasan and libubsan")
    done = run("cmake", "--workflow", "--preset", "address", cwd=repository)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    assert "100% tests passed" in done.stdout
