"""From the host to a device, without waiting."""

from __future__ import annotations

import torch
from torch import Tensor


def without_waiting(values: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on a device; to a GPU by way of page-locked memory, so that the host goes on at once.

    The host must not write to ``values`` afterwards where the device is the CPU: it is not copied then.
    """
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
