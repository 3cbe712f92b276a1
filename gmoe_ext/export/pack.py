"""Pack a student: fold what is exact to fold, check it, write one file that ``gmoe_ext.runtime`` serves.

The file is described in ``docs/runtime_format.md``. E experts, D in, F out, P position columns.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import ConfigError
from ..models.mlp import MLP
from ..models.rbm import RbM
from ..models.registry import Model
from ..nn.rbm_layer import RbMLayer

METADATA_KEY = "gmoe_ext.student"
Weights = Literal["float32", "bfloat16", "int8"]
WEIGHTS: tuple[Weights, ...] = ("float32", "bfloat16", "int8")
Normalize = Literal["none", "row_l1", "row_l2"]
STUDENTS = ("rbm", "mlp")  # kinds of models that can be packed
_NORMALIZES = ("none", "row_l1", "row_l2")
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int8: "I8"}  # safetensors' names
_DATA_ALIGNMENT = 64  # a cache line: where tensor data starts in the file


@dataclass
class _Layer:
    """One layer as the runtime computes it: gates from memory (or the one expert), W x + b, activation."""

    weight_EDF: Tensor
    bias_EF: Tensor
    memory_ED: Tensor | None
    k: int
    relu: bool

    def describe(self) -> dict[str, Any]:
        experts, width_in, width_out = self.weight_EDF.shape
        return {
            "router": "none" if self.memory_ED is None else "cosine",
            "in": width_in,
            "out": width_out,
            "experts": experts,
            "k": self.k,
            "activation": "relu" if self.relu else "none",
        }

    def tensors(self, weights: Weights) -> dict[str, Tensor]:
        named = {**stored_weight(self.weight_EDF, weights), "bias": self.bias_EF.float()}
        return named if self.memory_ED is None else {**named, "memory": self.memory_ED.float()}


@dataclass
class _Affine:
    """h * scale + shift: a norm in evaluation."""

    scale_F: Tensor
    shift_F: Tensor


@dataclass
class _Document:
    """Header and tensors of a file."""

    header: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)


def preparation(row_normalize: bool) -> Normalize:
    """What a file does to features whose model was trained with ``data.row_normalize`` on or off."""
    return "row_l1" if row_normalize else "none"


def pack(
    model: Model,
    path: str | os.PathLike[str],
    *,
    class_names: Sequence[str] | None = None,
    normalize: Normalize = "none",
    positions: Tensor | NDArray[np.floating[Any]] | None = None,
    position_dim: int = 0,
    dtype: Weights = "float32",
) -> Path:
    """Write a student into one file that ``gmoe_ext.runtime.PackedStudent`` serves without torch.

    What the model does in evaluation is what the file does: batch norms, input attention and output scale are folded
    into the experts' matrices in double precision, memories are stored as unit vectors. The file replaces an older one
    in one step; nobody sees half of it.

    Args:
        model: built by ``models.build("rbm" | "mlp", ...)``.
        path: file to write, by custom ``*.safetensors``.
        class_names: one per output.
        normalize: preparation of the feature columns before the first layer: "row_l1" divides a row by the sum of its
            absolute values (as ``data.row_normalize`` does), "row_l2" by its Euclidean norm. Say what the training data
            went through after the point where callers of the file take their rows.
        positions: [N, P] table of node positions. The model's inputs are features and then positions; callers pass the
            features and the node's row in the table.
        dtype: how weights are stored; sums are float32 for all. "bfloat16" halves the file and what one row reads of
            it, "int8" quarters it, with one scale for each input of each expert. Both round the weights, so answers
            change; ``export.compare`` says how much. Biases, memories and positions stay float32.
        position_dim: P where there is no table to ship but the last P inputs are positions.

    Returns:
        The path written.

    Raises:
        ConfigError: the model is of another kind, has a norm that does not fold, holds values that are not finite,
            or an argument does not fit it.

    Deterministic: yes; the same model gives the same bytes.

    Example:
        >>> pack(student, "student.safetensors", class_names=["a", "b"])
        >>> PackedStudent.load("student.safetensors").predict(x)
    """
    from .. import __version__

    if normalize not in _NORMALIZES:
        raise ConfigError(f"pack: expected 'normalize' to be one of {', '.join(_NORMALIZES)}, got {normalize!r}")
    if dtype not in WEIGHTS:
        raise ConfigError(f"pack: expected 'dtype' to be one of {', '.join(WEIGHTS)}, got {dtype!r}")
    with torch.no_grad():
        layers = _layers(model)
    table = None if positions is None else _table(positions)
    dim = position_dim if table is None else table.shape[1]
    if table is not None and position_dim not in (0, dim):
        raise ConfigError(f"pack: expected 'position_dim' to be the table's {dim} columns, got {position_dim}")
    header = {
        # The oldest version that can say it, so that older readers serve what they can.
        "format_version": 1 if dtype == "float32" else 2,
        "producer": f"gmoe_ext {__version__}",
        "model": model.name,
        "classes": _class_names(class_names, layers[-1].weight_EDF.shape[2]),
        "features": _features(layers[0].weight_EDF.shape[1], normalize, table, dim),
        "layers": [layer.describe() | ({} if dtype == "float32" else {"weights": dtype}) for layer in layers],
    }
    document = _Document(header)
    for i, layer in enumerate(layers):
        for name, tensor in layer.tensors(dtype).items():
            document.tensors[f"layers.{i}.{name}"] = _checked(tensor, f"layers.{i}.{name}")
    if dim > 0:
        document.tensors["positions"] = _checked(torch.empty(0, dim) if table is None else table, "positions")
    return _write(Path(path), document)


def _layers(model: Model) -> list[_Layer]:
    if isinstance(model, RbM):
        layers = [_rbm_layer(layer) for layer in model.rbm_layers()]
    elif isinstance(model, MLP):
        layers = [_linear_layer(layer) for layer in model.layers]
    else:
        kind = model.name or type(model).__name__
        raise ConfigError(f"pack: expected a student of kind 'rbm' or 'mlp', got {kind!r}")
    for layer, norm in zip(layers[:-1], model.norms, strict=True):
        _fold(layer, _affine(norm))
        layer.relu = True
    return layers


def _rbm_layer(layer: RbMLayer) -> _Layer:
    weight_EFD, bias_EF = layer.experts.weight.double(), layer.experts.bias.double()
    if layer.pretraining:
        return _Layer(weight_EFD[:1].mT, bias_EF[:1], None, 1, False)
    scale = layer.output_scale().double()
    attention_ED = layer.input_scale()
    if attention_ED is not None:
        weight_EFD = weight_EFD * attention_ED.double()[:, None, :]
    memory_ED = layer.router.memory.double()
    unit_ED = memory_ED / memory_ED.norm(dim=1, keepdim=True).clamp_min(layer.router.eps)
    return _Layer((scale * weight_EFD).mT, scale * bias_EF, unit_ED, layer.k, False)


def _linear_layer(layer: nn.Module) -> _Layer:
    assert isinstance(layer, nn.Linear)
    weight_FD = layer.weight.double()
    bias_F = weight_FD.new_zeros(layer.out_features) if layer.bias is None else layer.bias.double()
    return _Layer(weight_FD.mT[None], bias_F[None], None, 1, False)


def _affine(norm: nn.Module) -> _Affine | None:
    if isinstance(norm, nn.Identity):
        return None
    if not isinstance(norm, nn.BatchNorm1d) or norm.running_mean is None or norm.running_var is None:
        raise ConfigError(
            f"pack: {type(norm).__name__} between layers does not fold into a matrix; "
            "train the student with norm 'batch' or 'none' to serve it packed"
        )
    scale_F = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale_F = scale_F * norm.weight.double()
    shift_F = -norm.running_mean.double() * scale_F
    return _Affine(scale_F, shift_F if norm.bias is None else shift_F + norm.bias.double())


def _fold(layer: _Layer, affine: _Affine | None) -> None:
    """a * sum_r g_r (W_r x + b_r) + c = sum_r g_r (a W_r x + a b_r + c), since a row's gates sum to 1."""
    if affine is not None:
        layer.weight_EDF = layer.weight_EDF * affine.scale_F
        layer.bias_EF = layer.bias_EF * affine.scale_F + affine.shift_F


def stored_weight(weight_EDF: Tensor, weights: Weights) -> dict[str, Tensor]:
    """The tensors that hold a layer's weights.

    int8: W_edf ~ q_edf s_ed with s_ed = max_f |W_edf| / 127, q rounded to the nearest, ties to even.
    """
    if weights == "bfloat16":
        return {"weight": weight_EDF.bfloat16()}
    if weights == "int8":
        scale_ED = (weight_EDF.abs().amax(2) / 127).float()
        divisor_ED1 = scale_ED.masked_fill(scale_ED == 0, 1)[..., None]
        return {
            "weight": (weight_EDF / divisor_ED1).round().clamp(-127, 127).to(torch.int8),
            "weight_scale": scale_ED,
        }
    return {"weight": weight_EDF.float()}


def _table(positions: Tensor | NDArray[np.floating[Any]]) -> Tensor:
    table = torch.as_tensor(positions).detach().cpu()
    if table.ndim != 2 or table.shape[1] == 0:
        raise ConfigError(f"pack: expected 'positions' of shape [N, P], got {list(table.shape)}")
    return table.float()


def _class_names(names: Sequence[str] | None, outputs: int) -> list[str] | None:
    if names is None:
        return None
    if len(names) != outputs:
        raise ConfigError(f"pack: expected {outputs} 'class_names', one per output, got {len(names)}")
    return [str(name) for name in names]


def _features(inputs: int, normalize: Normalize, table: Tensor | None, dim: int) -> dict[str, Any]:
    if not 0 <= dim <= inputs:
        raise ConfigError(f"pack: positions of {dim} columns do not fit a student of {inputs} inputs")
    nodes = 0 if table is None else table.shape[0]
    return {
        "columns": inputs - dim,
        "normalize": normalize,
        "positions": {"nodes": nodes, "columns": dim} if dim > 0 else None,
    }


def _checked(tensor: Tensor, name: str) -> Tensor:
    if not torch.isfinite(tensor).all():
        raise ConfigError(f"pack: '{name}' holds NaN or infinite values; the student's training diverged")
    return tensor.cpu().contiguous()


def _bytes(tensor: Tensor) -> bytes:
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
    array = tensor.numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _write(path: Path, document: _Document) -> Path:
    # Tensors whose size is a multiple of a cache line come first, so that each of them starts on a line; then wider
    # elements before narrower ones, so that all are aligned to their element.
    def order(name: str) -> tuple[bool, int, int, str]:
        tensor = document.tensors[name]
        return tensor.nbytes % _DATA_ALIGNMENT != 0, -tensor.element_size(), -tensor.nbytes, name

    names = sorted(document.tensors, key=order)
    student = json.dumps(document.header, ensure_ascii=False, separators=(",", ":"))
    entries: dict[str, Any] = {"__metadata__": {METADATA_KEY: student}}
    begin = 0
    for name in names:
        tensor = document.tensors[name]
        end = begin + tensor.nbytes
        entries[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-(len(header) + 8) % _DATA_ALIGNMENT)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with draft.open("xb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for name in names:
                file.write(_bytes(document.tensors[name]))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return path
