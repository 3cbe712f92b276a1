"""Time on the device: between two events, the second-level cache cold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gmoe_ext import build_info


class EventTimer:
    """Seconds between an event before a call and one behind it, on torch's current stream.

    Before each call a buffer twice as large as the second-level cache is written. That leaves nothing of the inputs
    there, and gives the host the time to queue the call: what is measured is the device's work, not the launches'.
    """

    shortest_s = 0.0  # an event is exact to half a microsecond: a call is never repeated within a sample

    def __init__(self) -> None:
        card = torch.cuda.get_device_properties(torch.cuda.current_device())
        self._written_over = torch.empty(2 * card.L2_cache_size, dtype=torch.uint8, device="cuda")

    def seconds(self, call: Callable[[], Any], repeats: int) -> float:
        """Of so many calls together."""
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
        for start, end in events:
            self._written_over.zero_()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in events) / 1e3


def lacking() -> str | None:
    """What the claims of a GPU need and this machine or build has not."""
    if not torch.cuda.is_available():
        return "torch sees no GPU here"
    if not build_info().get("cuda", False):
        return "gmoe_ext was built without its CUDA kernels\n  mend: FORCE_CUDA=1 python setup.py build_ext --inplace"
    return None
