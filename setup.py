"""Builds the compiled modules by driving CMake and Ninja; everything else is in pyproject.toml.

Environment: MAX_JOBS (parallel compiler jobs), DEBUG=1 (no optimisation, symbols), FORCE_CUDA=1 or GMOE_CUDA=ON
(CUDA kernels), TORCH_CUDA_ARCH_LIST (their targets, such as "8.0 9.0a+PTX"), GMOE_CMAKE_ARGS (anything else for CMake).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def truthy(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() in {"1", "on", "true", "yes"}


def find_tool(name: str) -> str:
    """A tool from this Python environment, else from PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise SystemExit(f"error: building gmoe_ext needs '{name}': pip install {name}")
    return found


def cuda_architectures() -> list[str]:
    """The targets that torch's variable names, in CMake's words: 9.0a is 90a-real, 9.0+PTX is 90."""
    names = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    wrong = [name for name in names if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", name)]
    if wrong:
        raise SystemExit(f"error: TORCH_CUDA_ARCH_LIST: expected names such as 8.0 or 9.0a+PTX, got {wrong[0]}")
    bare = [name.removesuffix("+PTX").replace(".", "") + ("" if name.endswith("+PTX") else "-real") for name in names]
    return [f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(bare)}"] if bare else []


class CMakeBuild(build_ext):
    """One CMake project makes all modules, whatever their number."""

    def run(self) -> None:
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}{'-debug' if truthy('DEBUG') else ''}"
        output = ROOT / "gmoe_ext" if self.inplace else (Path(self.build_lib) / "gmoe_ext").resolve()
        output.mkdir(parents=True, exist_ok=True)
        cuda = truthy("FORCE_CUDA") or truthy("GMOE_CUDA")
        configure = [
            find_tool("cmake"),
            *("-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if truthy('DEBUG') else 'Release'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DGMOE_VERSION={VERSION}",
            f"-DGMOE_OUTPUT_DIR={output}",
            f"-DGMOE_CUDA={'ON' if cuda else 'OFF'}",
            *(cuda_architectures() if cuda else []),
            *os.environ.get("GMOE_CMAKE_ARGS", "").split(),
        ]
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        subprocess.run(configure, check=True)
        subprocess.run([find_tool("cmake"), "--build", str(build), "--parallel", jobs], check=True)

    def get_outputs(self) -> list[str]:
        package = Path(self.build_lib) / "gmoe_ext"
        return [str(p) for p in (*package.glob("*.so"), *package.glob("include/*.h"))]


setup(ext_modules=[Extension("gmoe_ext._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
