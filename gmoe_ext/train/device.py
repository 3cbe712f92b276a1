"""Where a run computes, and the first line it says about itself."""

from __future__ import annotations

import ctypes
import ctypes.util
import sys

import torch

from ..errors import ConfigError


def resolve(name: str) -> torch.device:
    """The device called auto, cpu, cuda or cuda:N; auto is CUDA where there is one.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device: expected auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices\n  mend: --device cpu")
    return device


def describe_backend() -> str:
    """The compiled operators' instruction set and threads, or that the reference is used."""
    from .. import _native

    threads = torch.get_num_threads()
    plural = "" if threads == 1 else "s"
    kind = f"{_native.build_info()['cpu']}, " if _native.available else ""
    return f"{_native.backend()} ({kind}{threads} thread{plural})"


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks, so that a step's buffers are not faulted in again at the next step.

    Large activations otherwise come from mmap and are returned at every step; keeping them halves a run's page faults.
    The command line calls this once at its start; importing never does. Without glibc it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return
    m_trim_threshold, m_mmap_threshold = -1, -3
    libc.mallopt(m_mmap_threshold, 1 << 30)
    libc.mallopt(m_trim_threshold, 1 << 30)
