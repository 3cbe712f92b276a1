"""Describe the machine, and measure how much of it other processes used."""

from __future__ import annotations

import datetime
import os
import platform
import resource
import subprocess
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

import gmoe_ext

ROOT = Path(__file__).resolve().parents[2]
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def describe(num_threads: int, clock: str = "wall", device: str = "cpu") -> dict[str, Any]:
    """Describe the machine, the software and the settings."""
    native = gmoe_ext.backend() == "native"
    return {
        **({} if device == "cpu" else gpu()),
        "cpu": cpu_model(),
        "caches": {f"L{level}": size for level, size in caches().items()},
        "cpus": len(os.sched_getaffinity(0)),
        "cpus_of_machine": os.cpu_count(),
        "instruction_set": gmoe_ext.build_info()["cpu"] if native else "reference",
        "threads": num_threads,
        "clock": clock,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "allocator": allocator(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def gpu() -> dict[str, Any]:
    """Describe the GPU and its driver."""
    card = torch.cuda.get_device_properties(torch.cuda.current_device())
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,clocks.max.mem", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        told = []
    return {
        "gpu": card.name,
        "gpu_capability": f"{card.major}.{card.minor}",
        "gpu_memory": card.total_memory,
        "gpu_multiprocessors": card.multi_processor_count,
        "gpu_l2": card.L2_cache_size,
        "gpu_driver_and_clocks": told[0] if told else None,
        "cuda": torch.version.cuda,
        "cuda_kernels": gmoe_ext.build_info().get("cuda", False),
    }


def line(machine: dict[str, Any]) -> str:
    """Format the description as one line."""
    card = (f"{machine['gpu']} (sm_{machine['gpu_capability']}), CUDA {machine['cuda']}",) if "gpu" in machine else ()
    parts = (
        *card,
        machine["cpu"],
        f"{machine['cpus']} of {machine['cpus_of_machine']} CPUs",
        f"{threads(machine)}, {machine['clock']} clock",
        machine["instruction_set"],
        f"torch {machine['torch']}",
        machine["allocator"],
        machine["commit"],
        machine["date"],
    )
    return " | ".join(parts)


def threads(machine: dict[str, Any]) -> str:
    """Format the number of threads: '1 thread', '2 threads'."""
    return f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"


def cpu_model() -> str:
    """Return the processor's name, with family and model numbers, since several models share a name."""
    fields: dict[str, str] = {}
    info = Path("/proc/cpuinfo")
    if info.exists():
        for entry in info.read_text().split("\n\n")[0].splitlines():
            key, _, value = entry.partition(":")
            fields[key.strip()] = value.strip()
    name = fields.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in fields and "model" in fields:
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    return name


def allocator() -> str:
    """Say whether arrays may lie on huge pages."""
    wanted = os.environ.get("THP_MEM_ALLOC_ENABLE", "0") == "1"
    if not HUGE_PAGES.exists():
        return "huge pages unknown to this system"
    chosen = HUGE_PAGES.read_text().split("[")[-1].split("]")[0]
    return f"THP_MEM_ALLOC_ENABLE={int(wanted)}, transparent huge pages: {chosen}"


def commit() -> str:
    """Return the commit of the source tree, marked as dirty where it has changes."""
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return run.stdout.strip() if run.returncode == 0 else "no repository"


def caches() -> dict[int, int]:
    """Return the bytes of each level of data cache of one CPU: {1: 49152, 2: 2097152, 3: ...}; empty if unknown."""
    sizes = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, level, size = ((index / name).read_text().strip() for name in ("type", "level", "size"))
        if kind != "Instruction":
            factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[size[-1]]
            sizes[int(level)] = int(size[:-1]) * factor
    return sizes


class Neighbours:
    """Measures the share of CPU time that other processes have taken since construction.

    It counts the CPUs that this process may use, and includes time stolen by other machines on the same host.
    """

    def __init__(self) -> None:
        self._busy, self._own, self._start = _busy_s(), _own_s(), perf_counter()

    def share(self) -> float | None:
        """Return 0 for a quiet machine to 1 for a fully busy one; None where the system does not say."""
        busy = _busy_s()
        if busy is None or self._busy is None:
            return None
        available = (perf_counter() - self._start) * len(os.sched_getaffinity(0))
        others = busy - self._busy - (_own_s() - self._own)
        return min(1.0, max(0.0, others / max(available, 1e-9)))


def _own_s() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


def _busy_s() -> float | None:
    """Seconds in which the allowed CPUs were busy: user, nice, system, irq, softirq and steal of /proc/stat."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    allowed = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    ticks = 0
    for entry in stat.read_text().splitlines():
        name, *values = entry.split()
        if name in allowed:
            user, nice, system, _idle, _iowait, irq, softirq, steal = (int(value) for value in values[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")
