"""Checkpoints: named tensors and JSON values in one safetensors file, with a checksum.

Tensors (weights, optimizer moments, random states) are the file's body; scalars are JSON in its header. Nothing is
pickled: reading a checkpoint from elsewhere cannot run code.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .atomic_write import atomic_write
from .errors import DataError

FORMAT = "gmoe_ext.checkpoint/2"

Tensors = dict[str, Tensor]


class CheckpointError(DataError):
    """A checkpoint is damaged, or was not written by this version of gmoe_ext."""


def save(path: Path, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically.

    Args:
        path: the file; an existing one is replaced.
        tensors: named tensors on any device; stored contiguous, on the CPU.
        scalars: values that JSON can hold.
    """
    from safetensors.torch import save_file

    stored = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    header = {"format": FORMAT, "crc32": str(_crc32(stored)), "scalars": json.dumps(scalars, sort_keys=True)}
    with atomic_write(path) as draft:
        save_file(stored, draft, metadata=header)


def load(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Read the tensors (on the CPU) and the scalars of a checkpoint.

    Raises:
        CheckpointError: the file is damaged, or was not written by `save`.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {error}") from error
    if header.get("format") != FORMAT:
        got = header.get("format")
        raise CheckpointError(f"{path}: expected a checkpoint of format {FORMAT!r}, got {got!r}")
    if header.get("crc32") != str(_crc32(tensors)):
        raise CheckpointError(f"checkpoint {path} is damaged: its checksum differs")
    return tensors, json.loads(header["scalars"])


def split(tree: Mapping[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """Divide nested dictionaries into tensors, named OUTER/INNER, and the rest, in its own nesting."""
    tensors = {name: value for name, value in tree.items() if isinstance(value, Tensor)}
    rest = {name: value for name, value in tree.items() if name not in tensors}
    for name, part in rest.items():
        if isinstance(part, Mapping):
            inner, rest[name] = split(part)
            tensors |= {f"{name}/{key}": value for key, value in inner.items()}
    return tensors, rest


def join(tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `split`."""
    inner = {name: join(select(name, tensors), part) for name, part in rest.items() if isinstance(part, Mapping)}
    own = {name: value for name, value in tensors.items() if name.partition("/")[0] not in inner}
    return {**rest, **own, **inner}


def select(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """The tensors named PREFIX/NAME, by NAME."""
    start = prefix + "/"
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def _crc32(tensors: Mapping[str, Tensor]) -> int:
    crc = 0
    for name in sorted(tensors):
        flat = tensors[name].reshape(-1)
        crc = zlib.crc32(name.encode(), crc)
        if flat.numel():
            crc = zlib.crc32(flat.view(torch.uint8).numpy().tobytes(), crc)
    return crc
