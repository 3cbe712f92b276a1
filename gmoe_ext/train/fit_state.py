"""What a fit continues from, bit for bit: random states, the optimizer's state, and the settings they belong to."""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import Tensors
from ..errors import ConfigError


def seed_all(seed: int, phase: str = "") -> None:
    """Seed torch, NumPy and Python for one phase of a run. The only place that seeds.

    Every phase has its own stream, derived from the run's seed and the phase's name: a resumed run that skips finished
    phases meets the same numbers as one that went through them.
    """
    stream = np.random.SeedSequence([seed & 0xFFFFFFFFFFFFFFFF, zlib.crc32(phase.encode())])
    a, b, c = (int(word) for word in stream.generate_state(3, np.uint32))
    torch.manual_seed(a)
    np.random.seed(b)
    random.seed(c)


def rng_state(device: torch.device) -> tuple[Tensors, dict[str, Any]]:
    """The random states of torch (CPU, and the GPU that trains), NumPy and Python, as tensors and scalars."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, words, gauss = random.getstate()
    tensors = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
        "python": torch.tensor(words, dtype=torch.int64),
    }
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    return tensors, {
        "numpy": [str(kind), int(position), int(has_gauss), float(cached)],
        "python": [version, gauss],
    }


def set_rng_state(tensors: Mapping[str, Tensor], scalars: Mapping[str, Any], device: torch.device) -> None:
    """Put the random states of `rng_state` back; a GPU that takes over from the CPU stays as the phase seeded it."""
    torch.set_rng_state(tensors["torch"])
    kind, position, has_gauss, cached = scalars["numpy"]
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    version, gauss = scalars["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)


def split_optimizer(optimizer: torch.optim.Optimizer) -> tuple[Tensors, dict[str, Any]]:
    """An optimizer's state as tensors named PARAMETER.ENTRY, and scalars."""
    state = optimizer.state_dict()
    tensors: Tensors = {}
    scalars: dict[str, Any] = {}
    for parameter, entries in state["state"].items():
        for name, value in entries.items():
            target: dict[str, Any] = tensors if isinstance(value, Tensor) else scalars
            target[f"{parameter}.{name}"] = value
    return tensors, {"state": scalars, "groups": state["param_groups"]}


def join_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
    """Put the state of `split_optimizer` back."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **scalars["state"]}.items():
        parameter, name = key.split(".", 1)
        state.setdefault(int(parameter), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": scalars["groups"]})


def check_same(
    path: Path, saved: Mapping[str, Any], current: Mapping[str, Any], growable: tuple[str, ...] = ()
) -> None:
    """Refuse to continue a checkpoint under other settings.

    Args:
        growable: settings that may be larger now than then (the number of epochs of a one-phase run).

    Raises:
        ConfigError: names every differing key with both values.
    """
    differing = []
    for key in sorted(saved.keys() | current.keys()):
        then, now = saved.get(key), current.get(key)
        grown = key in growable and isinstance(then, int) and isinstance(now, int) and now >= then
        if then != now and not grown:
            differing.append(f"{key}: {then!r} in the checkpoint, {now!r} now")
    if differing:
        listed = "\n  ".join(differing)
        raise ConfigError(
            f"checkpoint {path} was written under other settings:\n  {listed}\n"
            "  mend: give the same settings, or another --run_dir, or --resume never"
        )
