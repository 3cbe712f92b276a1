"""Checkpoints: named tensors and JSON values in one safetensors file, with a checksum over both.

Tensors (weights, optimizer moments, random states) are the file's body; scalars are JSON in its header. Nothing is
pickled: reading a checkpoint from elsewhere cannot run code. The checkpoint that a new one replaces stays beside it.
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
from .errors import DataError, WriteError

FORMAT = "gmoe_ext.checkpoint/2"

Tensors = dict[str, Tensor]


class CheckpointError(DataError):
    """A checkpoint is damaged, cannot be written, or was not written by this version of gmoe_ext."""


def previous(path: Path) -> Path:
    """Where the checkpoint lies that the one at ``path`` replaced."""
    return path.with_name(path.name + ".previous")


def save(path: Path, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically.

    Args:
        path: the file; an existing one becomes its `previous`.
        tensors: named tensors on any device; stored contiguous, on the CPU.
        scalars: values that JSON can hold.

    Raises:
        CheckpointError: it cannot be written, for lack of space for example; an existing one is kept.
    """
    from safetensors.torch import save as serialize

    stored = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    text = json.dumps(scalars, sort_keys=True)
    header = {"format": FORMAT, "crc32": _crc32(stored, text), "scalars": text}
    try:
        with atomic_write(path, previous(path)) as draft:
            # Not save_file, which leaves a temporary file of its own behind when it is killed.
            draft.write_bytes(serialize(stored, metadata=header))
    except WriteError as error:
        raise CheckpointError(f"checkpoint {error}, with --resume auto; the checkpoint before is kept") from error


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
    if header.get("crc32") != _crc32(tensors, header.get("scalars", "")):
        raise CheckpointError(f"checkpoint {path} is damaged: its checksum differs")
    try:
        scalars = json.loads(header["scalars"])
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: its scalars are no JSON ({error})") from error
    if not isinstance(scalars, dict):
        raise CheckpointError(f"checkpoint {path} is damaged: its scalars are no JSON object")
    return tensors, scalars


def load_good(path: Path) -> tuple[Tensors, dict[str, Any], str] | None:
    """Read a checkpoint, or its `previous` one if it is damaged or gone.

    Returns:
        Tensors, scalars and, if the previous one was read, a sentence that says why and names it; None if there is
        neither.

    Raises:
        CheckpointError: neither is whole.
    """
    before = previous(path)
    if not before.exists():
        return (*load(path), "") if path.exists() else None
    try:
        return *load(path), ""
    except CheckpointError as error:
        why = error if path.exists() else f"checkpoint {path} is missing"  # killed between two moves
        return *load(before), f"{why}; continues from the one before it, {before}"


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


def _crc32(tensors: Mapping[str, Tensor], text: str) -> str:
    crc = zlib.crc32(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        crc = zlib.crc32(f"{name} {value.dtype} {list(value.shape)}".encode(), crc)
        if value.numel():
            crc = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().data, crc)
    return str(crc)
