"""A student as every format of export knows it: matrices with all folded into them that is exact to fold.

N rows, E experts, D in, F out, P position columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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

Normalize = Literal["none", "row_l1", "row_l2"]
Positions = Tensor | NDArray[np.floating[Any]]
STUDENTS = ("rbm", "mlp")  # kinds of models that can be exported
_NORMALIZES = ("none", "row_l1", "row_l2")


@dataclass
class FoldedLayer:
    """One layer as it is served: gates from memory (or the one expert), x W + b, activation; float64.

    Attributes:
        weight_EDF, bias_EF: of the experts.
        memory_ED: unit rows (or zeros), or None where there is one expert.
        k: experts per row.
        relu: whether a ReLU follows.
    """

    weight_EDF: Tensor
    bias_EF: Tensor
    memory_ED: Tensor | None
    k: int
    relu: bool


@dataclass(frozen=True)
class FoldedStudent:
    """A student and its feature preparation, checked.

    Attributes:
        name: of the model.
        layers: from the input up.
        class_names: one per output, or None.
        normalize: of the feature columns.
        positions: [nodes, P] table, float32, or None.
        position_dim: P, the last inputs of the first layer.
    """

    name: str
    layers: list[FoldedLayer]
    class_names: list[str] | None
    normalize: Normalize
    positions: Tensor | None
    position_dim: int

    @property
    def num_inputs(self) -> int:
        """Columns of the first layer: features and positions."""
        return self.layers[0].weight_EDF.shape[1]

    @property
    def num_features(self) -> int:
        """Columns that callers hand in where the table has the positions."""
        return self.num_inputs - self.position_dim

    @property
    def num_outputs(self) -> int:
        """Classes."""
        return self.layers[-1].weight_EDF.shape[2]


def preparation(row_normalize: bool) -> Normalize:
    """What a file does to features whose model was trained with ``data.row_normalize`` on or off."""
    return "row_l1" if row_normalize else "none"


@torch.no_grad()
def fold(
    model: Model,
    *,
    class_names: Sequence[str] | None = None,
    normalize: Normalize = "none",
    positions: Positions | None = None,
    position_dim: int = 0,
) -> FoldedStudent:
    """Fold batch norms, input attention and output scale into the experts' matrices, in double precision.

    The arguments are those of :func:`gmoe_ext.export.pack`, and so are the errors.
    """
    if normalize not in _NORMALIZES:
        raise ConfigError(f"export: expected 'normalize' to be one of {', '.join(_NORMALIZES)}, got {normalize!r}")
    layers = _layers(model)
    table = None if positions is None else _table(positions)
    dim = position_dim if table is None else table.shape[1]
    if table is not None and position_dim not in (0, dim):
        raise ConfigError(f"export: expected 'position_dim' to be the table's {dim} columns, got {position_dim}")
    inputs = layers[0].weight_EDF.shape[1]
    if not 0 <= dim <= inputs:
        raise ConfigError(f"export: positions of {dim} columns do not fit a student of {inputs} inputs")
    names = _class_names(class_names, layers[-1].weight_EDF.shape[2])
    return FoldedStudent(model.name, layers, names, normalize, table, dim)


def finite(tensor: Tensor, name: str) -> Tensor:
    """The tensor, contiguous on the CPU, if all its values are finite numbers.

    Raises:
        ConfigError: one is not.
    """
    if not torch.isfinite(tensor).all():
        raise ConfigError(f"export: '{name}' holds NaN or infinite values; the student's training diverged")
    return tensor.cpu().contiguous()


@dataclass
class _Affine:
    """h * scale + shift: a norm in evaluation."""

    scale_F: Tensor
    shift_F: Tensor


def _layers(model: Model) -> list[FoldedLayer]:
    if isinstance(model, RbM):
        layers = [_rbm_layer(layer) for layer in model.rbm_layers()]
    elif isinstance(model, MLP):
        layers = [_linear_layer(layer) for layer in model.layers]
    else:
        kind = model.name or type(model).__name__
        raise ConfigError(f"export: expected a student of kind 'rbm' or 'mlp', got {kind!r}")
    for layer, norm in zip(layers[:-1], model.norms, strict=True):
        _fold(layer, _affine(norm))
        layer.relu = True
    return layers


def _rbm_layer(layer: RbMLayer) -> FoldedLayer:
    weight_EFD, bias_EF = layer.experts.weight.double(), layer.experts.bias.double()
    if layer.pretraining:
        return FoldedLayer(weight_EFD[:1].mT, bias_EF[:1], None, 1, False)
    scale = layer.output_scale().double()
    attention_ED = layer.input_scale()
    if attention_ED is not None:
        weight_EFD = weight_EFD * attention_ED.double()[:, None, :]
    memory_ED = layer.router.memory.double()
    unit_ED = memory_ED / memory_ED.norm(dim=1, keepdim=True).clamp_min(layer.router.eps)
    return FoldedLayer((scale * weight_EFD).mT, scale * bias_EF, unit_ED, layer.k, False)


def _linear_layer(layer: nn.Module) -> FoldedLayer:
    assert isinstance(layer, nn.Linear)
    weight_FD = layer.weight.double()
    bias_F = weight_FD.new_zeros(layer.out_features) if layer.bias is None else layer.bias.double()
    return FoldedLayer(weight_FD.mT[None], bias_F[None], None, 1, False)


def _affine(norm: nn.Module) -> _Affine | None:
    if isinstance(norm, nn.Identity):
        return None
    if not isinstance(norm, nn.BatchNorm1d) or norm.running_mean is None or norm.running_var is None:
        raise ConfigError(
            f"export: {type(norm).__name__} between layers does not fold into a matrix; "
            "train the student with norm 'batch' or 'none' to serve it"
        )
    scale_F = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale_F = scale_F * norm.weight.double()
    shift_F = -norm.running_mean.double() * scale_F
    return _Affine(scale_F, shift_F if norm.bias is None else shift_F + norm.bias.double())


def _fold(layer: FoldedLayer, affine: _Affine | None) -> None:
    """a * sum_r g_r (W_r x + b_r) + c = sum_r g_r (a W_r x + a b_r + c), since a row's gates sum to 1."""
    if affine is not None:
        layer.weight_EDF = layer.weight_EDF * affine.scale_F
        layer.bias_EF = layer.bias_EF * affine.scale_F + affine.shift_F


def _table(positions: Positions) -> Tensor:
    table = torch.as_tensor(positions).detach().cpu()
    if table.ndim != 2 or table.shape[1] == 0:
        raise ConfigError(f"export: expected 'positions' of shape [N, P], got {list(table.shape)}")
    return table.float()


def _class_names(names: Sequence[str] | None, outputs: int) -> list[str] | None:
    if names is None:
        return None
    if len(names) != outputs:
        raise ConfigError(f"export: expected {outputs} 'class_names', one per output, got {len(names)}")
    return [str(name) for name in names]
