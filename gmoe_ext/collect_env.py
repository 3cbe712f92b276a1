"""`python -m gmoe_ext.collect_env`: show the build, the machine and the optional packages, for bug reports."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_REQUIRED = ("torch", "numpy", "safetensors", "jsonargparse", "rich", "pyyaml")
_EXTRAS = {
    "distill": ("gensim", "scikit-learn"),
    "plot": ("matplotlib",),
    "predict": ("pyarrow",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "serve": ("fastapi", "uvicorn"),
    "bench": ("pytest-benchmark", "torch-scatter"),
}
_VARIABLES = ("GMOE_EXT_DATA", "GMOE_EXT_BACKEND", "GMOE_EXT_REQUIRE_NATIVE", "GMOE_EXT_CPU", "OMP_NUM_THREADS")


def collect() -> list[tuple[str, str]]:
    """Collect facts about package, machine and environment, as (name, value) in display order."""
    import gmoe_ext

    facts = [
        ("gmoe_ext", f"{gmoe_ext.__version__}  {Path(gmoe_ext.__file__).parent}"),
        *_native(),
        ("python", f"{platform.python_version()}  {sys.executable}"),
        ("platform", f"{platform.platform()}, {processor()}, {os.cpu_count()} cores"),
        *_torch(),
    ]
    facts += [(name, _version(name)) for name in _REQUIRED if name != "torch"]
    facts += [(f"[{extra}]", ", ".join(f"{p} {_version(p)}" for p in needed)) for extra, needed in _EXTRAS.items()]
    facts += [(name, os.environ[name]) for name in _VARIABLES if name in os.environ]
    return facts


def _native() -> list[tuple[str, str]]:
    from . import _native as native
    from .errors import NativeError

    try:
        info = native.build_info()
    except NativeError as error:
        return [("backend", native.backend()), ("library", str(error).replace("\n", " "))]
    return [("backend", native.backend()), *((f"  {key}", str(value)) for key, value in info.items())]


def _torch() -> list[tuple[str, str]]:
    import torch

    facts = [("torch", f"{torch.__version__}, {torch.get_num_threads()} threads, CUDA {torch.version.cuda}")]
    for i in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(i)
        facts.append((f"cuda:{i}", f"{device.name}, {device.total_memory >> 30} GiB, sm_{device.major}{device.minor}"))
    return facts


def processor() -> str:
    """Return the name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        return platform.processor()  # no such file outside Linux
    return platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def main() -> int:
    """Print the facts and return the exit code."""
    facts = collect()
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(f"{name:<{width}}  {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
