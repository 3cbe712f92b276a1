"""Pack a student: fold it and write it into one file that ``gmoe_ext.runtime`` serves.

The file is described in ``docs/reference/runtime_format.md``. E experts, D in, F out, P position columns.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from ..atomic_write import atomic_write
from ..errors import ConfigError
from ..models.registry import Model
from ..runtime import PackedStudent
from .fold import Content, FoldedLayer, FoldedRouter, FoldedStudent, finite, fold

METADATA_KEY, CHECKSUM_KEY = "gmoe_ext.student", "gmoe_ext.crc32"
FORMAT_VERSION = 1
Weights = Literal["float32", "bfloat16", "int8"]
WEIGHTS: tuple[Weights, ...] = ("float32", "bfloat16", "int8")
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int8: "I8"}  # safetensors' names
_DATA_ALIGNMENT = 64  # a cache line: where tensor data starts in the file


def pack(
    model: Model,
    path: str | os.PathLike[str],
    *,
    dtype: Weights = "float32",
    **content: Unpack[Content],
) -> Path:
    """Write a student into one file that ``gmoe_ext.runtime.PackedStudent`` serves without torch.

    The file computes what the model computes in evaluation; ``docs/reference/runtime_format.md`` says what is folded
    into what. An older file is replaced atomically.

    Args:
        model: built by ``models.build("rbm" | "moe" | "mlp" | "ensemble", ...)``.
        path: file to write, usually ``*.safetensors``.
        dtype: how weights are stored; sums are float32 for all. "bfloat16" halves the bytes of the weights, "int8"
            leaves a quarter of them and adds one scale per input of each expert. Biases, memories and positions stay
            float32, so the files of the shipped recipes' students have 52 to 57% and 28 to 34% of their size in
            float32. Both round the weights, so results change; ``export.compare`` measures by how much. A router's
            projection counts as a weight.
        class_names: one per output.
        feature_names: one per feature column, all different: columns of a file or a data frame are then checked by
            name, and those of a file put in this order.
        normalize: preparation of the feature columns before the first layer: "row_l1" divides a row by the sum of its
            absolute values (as ``data.row_normalize`` does), "row_l2" by its Euclidean norm. Name what was done to the
            training data but not to the rows that callers will pass.
        positions: [N, P] table of node positions. The model's inputs are features followed by positions; callers pass
            the features and the node's row in the table.
        position_dim: P if the last P inputs are positions but no table is shipped.

    Returns:
        The path written.

    Raises:
        ConfigError: the model is of another kind, has a norm that does not fold or values that are not finite, or an
            argument does not fit it.

    Deterministic: yes; the same model gives the same bytes.

    Examples:
        >>> pack(student, "student.safetensors", class_names=["a", "b"])
        >>> PackedStudent.load("student.safetensors").predict(x)
    """
    if dtype not in WEIGHTS:
        raise ConfigError(f"export: expected 'dtype' to be one of {', '.join(WEIGHTS)}, got {dtype!r}")
    student = fold(model, **content)
    tensors = {
        f"layers.{i}.{name}": finite(tensor, f"layers.{i}.{name}")
        for i, layer in enumerate(student.layers)
        for name, tensor in _tensors(layer, dtype).items()
    }
    if student.position_dim > 0:
        table = torch.empty(0, student.position_dim) if student.positions is None else student.positions
        tensors["positions"] = finite(table, "positions")
    _write(Path(path), describe(student, dtype), tensors)
    return Path(path)


def unpack(path: str | os.PathLike[str]) -> FoldedStudent:
    """Read the student in a packed file, with its weights as they were rounded at packing.

    Raises:
        DataError: the file is damaged or is not a packed student.
        OSError: the file cannot be opened.
    """
    from safetensors import safe_open

    PackedStudent.load(path)  # checks everything
    with safe_open(os.fspath(path), framework="pt") as file:
        document = json.loads(file.metadata()[METADATA_KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    layers = [_read_layer(layer, tensors, f"layers.{i}") for i, layer in enumerate(document["layers"])]
    depth = len(layers) // document["members"]
    members = [layers[first : first + depth] for first in range(0, len(layers), depth)]
    table = tensors.get("positions")
    dim = 0 if table is None else table.shape[1]
    features = document["features"]
    shipped = table if table is not None and len(table) > 0 else None
    names = document["classes"], features.get("names")
    return FoldedStudent(document["model"], members, *names, features["normalize"], shipped, dim)


def _read_layer(layer: dict[str, Any], tensors: dict[str, Tensor], name: str) -> FoldedLayer:
    router = None
    if layer["router"] != "none":
        projection = _read_matrices(tensors, f"{name}.router") if layer["router"] == "projected" else None
        router = FoldedRouter(tensors[f"{name}.memory"].double(), projection, layer.get("gates") == "all")
    return FoldedLayer(*_read_matrices(tensors, name), router, layer["k"], layer["activation"] == "relu")


def _read_matrices(tensors: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    weight_EDF = tensors[f"{name}.weight"].double()
    if f"{name}.weight_scale" in tensors:
        weight_EDF = weight_EDF * tensors[f"{name}.weight_scale"].double()[..., None]
    return weight_EDF, tensors[f"{name}.bias"].double()


def describe(student: FoldedStudent, dtype: Weights = "float32") -> dict[str, Any]:
    """Return the document of ``docs/reference/runtime_format.md``, which describes the student in a file."""
    from .. import __version__

    nodes = 0 if student.positions is None else student.positions.shape[0]
    dim = student.position_dim
    return {
        "format_version": FORMAT_VERSION,
        "producer": f"gmoe_ext {__version__}",
        "model": student.name,
        "classes": student.class_names,
        "features": {
            "columns": student.num_features,
            **({} if student.feature_names is None else {"names": student.feature_names}),
            "normalize": student.normalize,
            "positions": {"nodes": nodes, "columns": dim} if dim > 0 else None,
        },
        "members": len(student.members),
        "layers": [_describe_layer(layer, dtype) for layer in student.layers],
    }


def _describe_layer(layer: FoldedLayer, dtype: Weights) -> dict[str, Any]:
    router: dict[str, Any] = {"router": "none" if layer.router is None else "cosine"}
    if layer.router is not None and layer.router.projection is not None:
        gates = "all" if layer.router.over_all else "chosen"
        router = {"router": "projected", "router_dim": layer.router.memory_EH.shape[1], "gates": gates}
    experts, width_in, width_out = layer.weight_EDF.shape
    return {
        **router,
        "in": width_in,
        "out": width_out,
        "experts": experts,
        "k": layer.k,
        "activation": "relu" if layer.relu else "none",
        "weights": dtype,
    }


def _tensors(layer: FoldedLayer, weights: Weights) -> dict[str, Tensor]:
    named = {**stored_weight(layer.weight_EDF, weights), "bias": layer.bias_EF.float()}
    if layer.router is None:
        return named
    if layer.router.projection is not None:
        weight_1DH, bias_1H = layer.router.projection
        projection = {**stored_weight(weight_1DH, weights), "bias": bias_1H.float()}
        named |= {f"router.{name}": tensor for name, tensor in projection.items()}
    return {**named, "memory": layer.router.memory_EH.float()}


def stored_weight(weight_EDF: Tensor, weights: Weights) -> dict[str, Tensor]:
    """Return the tensors that store a layer's weights.

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


def _bytes(tensor: Tensor) -> bytes:
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
    array = tensor.numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _write(path: Path, document: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    # Tensors whose size is a multiple of a cache line come first, so that each of them starts on a line; then wider
    # elements before narrower ones, so that all are aligned to their element.
    def order(name: str) -> tuple[bool, int, int, str]:
        tensor = tensors[name]
        return tensor.nbytes % _DATA_ALIGNMENT != 0, -tensor.element_size(), -tensor.nbytes, name

    text, names, begin = _json(document), sorted(tensors, key=order), 0
    crc = zlib.crc32(text.encode())
    for name in names:
        crc = zlib.crc32(_bytes(tensors[name]), crc)
    entries: dict[str, Any] = {"__metadata__": {METADATA_KEY: text, CHECKSUM_KEY: str(crc)}}
    for name in names:
        tensor, end = tensors[name], begin + tensors[name].nbytes
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    header = _json(entries).encode()
    header += b" " * (-(len(header) + 8) % _DATA_ALIGNMENT)
    with atomic_write(path) as draft, draft.open("xb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in names:
            file.write(_bytes(tensors[name]))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
