"""The C++ tests: core and runtime under sanitizers, and the CUDA side without a GPU.

Processes are limited by the time they compute, not by the clock: a busy machine is no failure.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gmoe_ext
from bench import cuda_resources

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * 3600)]

CPU_S = 900  # of one process; the whole of a suite takes less on a slow core

COMPILER = shlex.split(os.environ.get("CXX", "c++"))
TOOLS = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


# What of torch only a torch with CUDA has.
OF_TORCH_WITH_CUDA = {"aoti_torch_get_current_cuda_stream"}


def run(*command: str, cwd: Path, text: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PATH": TOOLS, "CMAKE_BUILD_PARALLEL_LEVEL": os.environ.get("MAX_JOBS", "2"), **variables}
    return subprocess.run(
        command,
        cwd=cwd,
        env=env,
        input=text,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S)),
    )


def succeed(*command: str, cwd: Path, **variables: str) -> str:
    done = run(*command, cwd=cwd, **variables)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def require(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool, path=TOOLS) is None:
            pytest.skip(f"needs '{tool}'")


def require_emulator() -> None:
    require("cmake", "ninja")
    if platform.machine() not in {"x86_64", "AMD64"}:
        pytest.skip("the emulator switches stacks by x86-64 assembly")


def test_kernels_give_the_same_bits_in_every_order_and_need_their_barriers(repository: Path) -> None:
    require_emulator()
    assert "100% tests passed" in succeed("cmake", "--workflow", "--preset", "cuda", cwd=repository)


def test_operators_keep_their_contract_on_an_emulated_device(repository: Path) -> None:
    require_emulator()
    pytest.importorskip("pybind11", reason="pybind11 comes with the build requirements")
    options = ("-DGMOE_EMULATED=ON", f"-DPython_EXECUTABLE={sys.executable}")
    succeed("cmake", "--preset", "cuda", *options, cwd=repository)
    succeed("cmake", "--build", "--preset", "cuda", "--target", "emulated", cwd=repository)
    (library,) = (repository / "build/cuda/emulated").glob(f"_C.{sys.implementation.cache_tag}*.so")
    # Forward mode runs the reference.
    chosen = ("-m", "not slow", "-k", "contract and not number_of_threads and not forward_mode")
    command = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *chosen, "tests/ops")
    variables = {"GMOE_EXT_TEST_LIBRARY": str(library), "GMOE_EXT_REQUIRE_NATIVE": "1", "PYTHONPATH": str(repository)}
    passed = re.search(r"(\d+) passed", succeed(*command, cwd=repository, **variables))
    assert passed is not None and int(passed[1]) > 700


@pytest.fixture(scope="module")
def cuda_build(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The operators' library for CUDA, built for both targets, and what the build said."""
    require("cmake", "ninja", "nvcc", "nm")
    pytest.importorskip("pybind11", reason="pybind11 comes with the build requirements")
    build, out = tmp_path_factory.mktemp("build"), tmp_path_factory.mktemp("library")
    targets = ";".join(f"{target.removeprefix('sm_')}-real" for target in cuda_resources.TARGETS)
    options = ("-DGMOE_CUDA=ON", f"-DCMAKE_CUDA_ARCHITECTURES={targets}", f"-DGMOE_OUTPUT_DIR={out}")
    flags = f"-DCMAKE_CUDA_FLAGS={shlex.join(cuda_resources.WARNINGS)}"
    python = f"-DPython_EXECUTABLE={sys.executable}"
    succeed("cmake", "-S", ".", "-B", str(build), "-G", "Ninja", *options, flags, python, cwd=repository)
    said = succeed("cmake", "--build", str(build), "--target", "_cuda", cwd=repository)
    (library,) = out.glob("_cuda.*.so")
    return library, said


def test_cuda_library_needs_only_torch_and_libc(cuda_build: tuple[Path, str], tmp_path: Path) -> None:
    library, _ = cuda_build
    symbols = {line.split()[-1] for line in succeed("nm", "-D", "-u", str(library), cwd=tmp_path).splitlines()}
    # Weak ones of the compiler's own start-up code, Python's, and those that carry the version of a system library.
    outside = re.compile(r"_ITM_\w+|__gmon_start__|_?Py\w+|\w+@(GLIBC|GLIBCXX|CXXABI|GCC)_[\w.]+|_ZNSt\w+")
    others = {symbol for symbol in symbols if not outside.fullmatch(symbol)}
    (torch_library,) = Path(torch.__file__).parent.glob("lib/libtorch_cpu.*")
    defined = succeed("nm", "-D", "--defined-only", str(torch_library), cwd=tmp_path)
    assert others - {line.split()[-1].partition("@")[0] for line in defined.splitlines()} <= OF_TORCH_WITH_CUDA
    assert others >= OF_TORCH_WITH_CUDA


def test_nothing_of_cuda_is_loaded_beside_a_torch_without_it() -> None:
    if torch.version.cuda is not None:
        pytest.skip("this torch has CUDA")
    assert "gmoe_ext._cuda" not in sys.modules
    assert gmoe_ext.backend() != "native" or gmoe_ext.build_info()["cuda"] is False


def test_kernels_compile_for_both_targets_without_spills(cuda_build: tuple[Path, str], tmp_path: Path) -> None:
    require("c++filt")
    log = tmp_path / "build.log"
    log.write_text(cuda_build[1])
    assert cuda_resources.main(["--log", str(log), "--out", str(tmp_path / "resources.json")]) == 0
    # Compiling a source by itself says the same.
    one = cuda_resources.SOURCES / "topk_softmax.cu"
    alone = [k for target in cuda_resources.TARGETS for k in cuda_resources.compile_source("nvcc", one, target)]
    assert alone == [k for k in cuda_resources.kernels_of_build(cuda_build[1]) if k.source == one.name] != []


def test_program_for_a_gpu_compiles(repository: Path, tmp_path: Path) -> None:
    require("nvcc", "bash")
    program = str(repository / "bench/device/tests_main.cpp")
    flags = ("-std=c++20", "-Icsrc", "-Xcompiler", "-Wall,-Wextra,-Werror")
    done = run("nvcc", *flags, "-c", program, "-o", str(tmp_path / "tests_main.o"), cwd=repository)
    assert done.returncode == 0, done.stderr[-4000:]
    assert run("bash", "-n", "bench/device/run.sh", cwd=repository).returncode == 0


def links_sanitizers(directory: Path) -> bool:
    flags = ("-fsanitize=address,undefined", "-x", "c++", "-", "-o", "probe")
    return run(*COMPILER, *flags, cwd=directory, text="int main() {}").returncode == 0


def test_core_is_clean_under_address_and_undefined_behavior_sanitizer(repository: Path, tmp_path: Path) -> None:
    require(COMPILER[0], "cmake", "ninja")
    if not links_sanitizers(tmp_path):
        pytest.skip(f"'{COMPILER[0]}' finds no sanitizers; most systems call their packages libasan and libubsan")
    assert "100% tests passed" in succeed("cmake", "--workflow", "--preset", "address", cwd=repository)
