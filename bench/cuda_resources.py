"""What the CUDA kernels take of a multiprocessor: python -m bench.cuda_resources, as `make cuda` calls it.

Compiles every .cu of csrc/core/cuda for each target, with warnings as errors, and writes registers, spills, stack and
static shared memory of each kernel to bench/results/cuda_resources.json. Needs nvcc, no GPU. A kernel that spills
registers, or keeps an array in local memory, makes it fail. --log FILE reads what Ninja printed while it built _cuda
with WARNINGS instead, so that a build is not made twice.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "csrc" / "core" / "cuda"
RESULT = Path(__file__).resolve().parent / "results" / "cuda_resources.json"
TARGETS = ("sm_80", "sm_90a")
WARNINGS = ("-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra", "-Xptxas", "-v,-warn-spills")
FLAGS = ("-std=c++20", "-O3", f"-I{ROOT / 'csrc'}", "-cubin", *WARNINGS)


@dataclass(frozen=True)
class Kernel:
    """One kernel on one target."""

    source: str
    kernel: str
    target: str
    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int

    @property
    def faulty(self) -> bool:
        return self.spill_bytes > 0 or self.stack_bytes > 0


def compile_source(nvcc: str, source: Path, target: str) -> list[Kernel]:
    """Kernels of a source as ptxas reports them."""
    with tempfile.TemporaryDirectory() as directory:
        command = [nvcc, *FLAGS, f"-arch={target}", str(source), "-o", str(Path(directory) / "kernels.cubin")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{source.name}, {target}:\n{done.stdout}{done.stderr}")
    return kernels_of(done.stderr + done.stdout, source.name)


def kernels_of(report: str, source: str) -> list[Kernel]:
    """What `ptxas -v` said, kernel by kernel."""
    found = []
    for part in report.split("Compiling entry function '")[1:]:
        target = part.split("'")[2]
        registers = re.search(r"Used (\d+) registers", part)
        stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        if registers is None or stack is None:
            raise SystemExit(f"{source}, {target}: ptxas said something unknown:\n{part}")
        shared = re.search(r"(\d+) bytes smem", part)
        found.append(
            Kernel(
                source=source,
                kernel=readable(part.split("'")[0]),
                target=target,
                registers=int(registers[1]),
                spill_bytes=int(stack[2]) + int(stack[3]),
                stack_bytes=int(stack[1]),
                shared_bytes=int(shared[1]) if shared else 0,
            )
        )
    return sorted(found, key=lambda kernel: kernel.kernel)


def kernels_of_build(log: str) -> list[Kernel]:
    """What `ptxas -v` said in a build by Ninja, which puts a line with the source before its output."""
    parts = re.split(r"^\[\d+/\d+\] Building CUDA object \S+/(\w+\.cu)\.o$", log, flags=re.MULTILINE)[1:]
    kernels = [
        kernel for source, report in zip(parts[::2], parts[1::2], strict=True) for kernel in kernels_of(report, source)
    ]
    return sorted(kernels, key=lambda kernel: (kernel.source, kernel.target, kernel.kernel))


def readable(symbol: str) -> str:
    """The name in the source with its template arguments: topk_softmax_kernel<float>."""
    demangler = shutil.which("c++filt")
    if demangler is None:
        raise SystemExit("bench.cuda_resources needs c++filt, which comes with the compiler's binutils")
    name = subprocess.run([demangler, symbol], capture_output=True, text=True, check=True).stdout
    kernel = re.search(r"(\w+_kernel)(<.*>)?\(", name)
    if kernel is None:
        raise SystemExit(f"the name of a kernel ends with _kernel, got {name}")
    return (kernel[1] + (kernel[2] or "")).replace("gmoe::core::", "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile all, print a table, keep it."""
    parser = argparse.ArgumentParser(prog="python -m bench.cuda_resources", description=__doc__)
    parser.add_argument("--nvcc", default="nvcc", help="the compiler, a name on PATH or a file")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the result goes")
    parser.add_argument("--log", type=Path, help="read this output of a build instead of compiling")
    options = parser.parse_args(arguments)
    nvcc = shutil.which(options.nvcc)
    if nvcc is None:
        raise SystemExit(f"'{options.nvcc}' not found: install the CUDA toolkit, 12.8 or newer, or pass --nvcc FILE")
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release [\d.]+, V([\d.]+)", version)
    sources = sorted(SOURCES.glob("*.cu"))
    if options.log is None:
        kernels = [k for source in sources for t in TARGETS for k in compile_source(nvcc, source, t)]
    else:
        kernels = kernels_of_build(options.log.read_text())
    missing = {(s.name, t) for s in sources for t in TARGETS} - {(k.source, k.target) for k in kernels}
    if missing:
        raise SystemExit(f"no kernel reported of {', '.join(' for '.join(one) for one in sorted(missing))}")
    print(f"{'target':8}{'registers':>10}{'spills':>8}{'stack':>7}{'shared':>8}  kernel")
    for k in kernels:
        line = f"{k.target:8}{k.registers:10}{k.spill_bytes:8}{k.stack_bytes:7}{k.shared_bytes:8}  {k.kernel}"
        print(line + ("  <- spills" if k.faulty else ""))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    result = {"nvcc": release[1] if release else "unknown", "kernels": [asdict(k) for k in kernels]}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    faulty = [k for k in kernels if k.faulty]
    print(f"{len(kernels)} kernels, {len(faulty)} with spills or local memory")
    return 1 if faulty else 0


if __name__ == "__main__":
    raise SystemExit(main())
