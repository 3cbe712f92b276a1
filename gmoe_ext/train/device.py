"""Choose the device of a run, and set up and describe it."""

from __future__ import annotations

import ctypes
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from .. import _native
from ..errors import ConfigError

Precision = Literal["float32", "bf16-mixed"]


def resolve(name: str) -> torch.device:
    """Return the device called auto, cpu, cuda or cuda:N; auto is CUDA if torch and the operators have it.

    Raises:
        ConfigError: there is no such device, or there are no operators for it.
    """
    expected = f"--device: expected auto, cpu, cuda or cuda:N, got {name!r}"
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() and _operators_on_cuda() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(expected) from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(expected)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices\n  fix: --device cpu")
    if device.type == "cuda" and not _operators_on_cuda():
        raise ConfigError(f"--device {name}: {_native.why_no_cuda()}\n  or pass --device cpu")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device


def _operators_on_cuda() -> bool:
    return not _native.available or _native.why_no_cuda() is None  # the reference runs anywhere


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """Return the context of a forward: none, or torch's mixed precision with bfloat16."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def peak_memory(device: torch.device) -> int | None:
    """Return the peak memory of tensors on a GPU so far, in bytes; None on the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that the host or the GPU has no memory left."""
    told = "can't allocate memory" in str(error) or "not enough memory" in str(error)
    return told or isinstance(error, MemoryError | torch.OutOfMemoryError)


def describe_backend() -> str:
    """Name the backend, the instruction set of the compiled operators, and the threads."""
    threads = torch.get_num_threads()
    kind = f"{_native.build_info()['cpu']}, " if _native.available else ""
    return f"{_native.backend()} ({kind}{threads} thread{'' if threads == 1 else 's'})"


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks, so that the next step need not fault its buffers in again.

    Large activations otherwise come from mmap and are returned at every step; keeping them halves a run's page faults.
    The command line calls this once at its start; importing the package does not. Without glibc it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return
    m_trim_threshold, m_mmap_threshold = -1, -3
    libc.mallopt(m_mmap_threshold, 1 << 30)
    libc.mallopt(m_trim_threshold, 1 << 30)
