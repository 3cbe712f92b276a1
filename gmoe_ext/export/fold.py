"""Fold a student into plain matrices, the form that every export format starts from.

N rows, E experts, D in, F out, P position columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import ConfigError
from ..models import MLP, Ensemble, ExpertStudent, Model
from ..nn import CosineMemoryRouter, ProjectedRouter
from ..nn.rbm.moe_layer import ExpertLayer

Normalize = Literal["none", "row_l1", "row_l2"]
Positions = Tensor | NDArray[np.floating[Any]]
STUDENTS = ("rbm", "moe", "mlp", "ensemble")  # models that can be exported
EPS = 1e-12  # smallest norm that a row is divided by, as in the runtime
MOST = 1e12  # of a weight: products of larger ones leave float32 within a few layers
_NORMALIZES = ("none", "row_l1", "row_l2")


@dataclass
class FoldedRouter:
    """A router: a row goes to the experts of the k largest x' memory / |x'|, where x' is the row or its projection.

    Attributes:
        memory_EH: float64; unit rows (or zeros) without a projection, else rows of norm 100 at most.
        projection: x' = x W + b as (W [1, D, H], b [1, H]), or None for x' = x.
        over_all: gates are a softmax over all experts; else over the k chosen ones.
    """

    memory_EH: Tensor
    projection: tuple[Tensor, Tensor] | None = None
    over_all: bool = False


@dataclass
class FoldedLayer:
    """One layer as it is served: router, experts x W + b, activation; float64.

    Attributes:
        weight_EDF, bias_EF: of the experts.
        router: None for a single expert.
        k: experts per row.
        relu: whether a ReLU follows.
    """

    weight_EDF: Tensor
    bias_EF: Tensor
    router: FoldedRouter | None
    k: int
    relu: bool


@dataclass(frozen=True)
class FoldedStudent:
    """A checked student with its feature preparation.

    Attributes:
        name: of the model.
        members: the layers, from the input up, of each network whose probabilities are averaged; usually one.
        class_names: one per output, or None.
        feature_names: one per feature column, all different, or None.
        normalize: of the feature columns.
        positions: [nodes, P] table, float32, or None.
        position_dim: P, the last inputs of the first layer.
    """

    name: str
    members: list[list[FoldedLayer]]
    class_names: list[str] | None
    feature_names: list[str] | None
    normalize: Normalize
    positions: Tensor | None
    position_dim: int

    @property
    def layers(self) -> list[FoldedLayer]:
        """Layers of the first member, then of the second, and so on."""
        return list(itertools.chain(*self.members))

    @property
    def num_inputs(self) -> int:
        """Number of columns of the first layer: features and positions."""
        return self.layers[0].weight_EDF.shape[1]

    @property
    def num_features(self) -> int:
        """Number of columns that callers pass if the table provides the positions."""
        return self.num_inputs - self.position_dim


def preparation(row_normalize: bool) -> Normalize:
    """Return the feature preparation of a model that was trained with or without ``data.row_normalize``."""
    return "row_l1" if row_normalize else "none"


class Content(TypedDict, total=False):
    """What a file contains beside the model: keywords of :func:`fold` and its callers, documented at `export.pack`."""

    class_names: Sequence[str] | None
    feature_names: Sequence[str] | None
    normalize: Normalize
    positions: Positions | None
    position_dim: int


@torch.no_grad()
def fold(
    model: Model,
    *,
    class_names: Sequence[str] | None = None,
    feature_names: Sequence[str] | None = None,
    normalize: Normalize = "none",
    positions: Positions | None = None,
    position_dim: int = 0,
) -> FoldedStudent:
    """Fold batch norms, input attention and output scale into the experts' matrices, in double precision.

    Arguments and errors are those of :func:`gmoe_ext.export.pack`.
    """
    if normalize not in _NORMALIZES:
        raise ConfigError(f"export: expected 'normalize' to be one of {', '.join(_NORMALIZES)}, got {normalize!r}")
    members = [_layers(member) for member in (model.learners() if isinstance(model, Ensemble) else [model])]
    layers = members[0]
    table = None if positions is None else _table(positions)
    dim = position_dim if table is None else table.shape[1]
    if table is not None and position_dim not in (0, dim):
        raise ConfigError(f"export: expected 'position_dim' to be the table's {dim} columns, got {position_dim}")
    inputs = layers[0].weight_EDF.shape[1]
    if not 0 <= dim <= inputs:
        raise ConfigError(f"export: positions of {dim} columns do not fit a student of {inputs} inputs")
    classes = _names("class_names", class_names, layers[-1].weight_EDF.shape[2])
    features = _names("feature_names", feature_names, inputs - dim)
    if features is not None and len(set(features)) < len(features):
        twice = next(name for name in features if features.count(name) > 1)
        raise ConfigError(f"export: expected different 'feature_names', got {twice!r} twice")
    return FoldedStudent(model.name, members, classes, features, normalize, table, dim)


def finite(tensor: Tensor, name: str) -> Tensor:
    """Return the tensor, contiguous on the CPU, after checking that all its values are finite and none is absurd.

    Raises:
        ConfigError: a value is not.
    """
    if not torch.isfinite(tensor).all():
        raise ConfigError(f"export: '{name}' contains NaN or infinite values; the student's training diverged")
    if tensor.numel() and (largest := float(tensor.abs().max())) > MOST:
        raise ConfigError(
            f"export: '{name}' contains {largest:.2g}, expected at most {MOST:.0e}; the student's training diverged, "
            "or its checkpoint is damaged"
        )
    return tensor.cpu().contiguous()


def _layers(model: Model) -> list[FoldedLayer]:
    if isinstance(model, ExpertStudent):
        layers = [_expert_layer(layer) for layer in model.expert_layers()]
    elif isinstance(model, MLP):
        layers = [_linear_layer(layer) for layer in model.layers]
    else:
        kind = model.name or type(model).__name__
        raise ConfigError(f"export: expected a student of kind {', '.join(STUDENTS)}, got {kind!r}")
    for layer, norm in zip(layers[:-1], model.norms, strict=True):
        _fold_norm(layer, norm)
        layer.relu = True
    return layers


def _expert_layer(layer: ExpertLayer) -> FoldedLayer:
    weight_EFD, bias_EF = layer.experts.weight.double(), layer.experts.bias.double()
    if layer.pretraining:
        return FoldedLayer(weight_EFD[:1].mT, bias_EF[:1], None, 1, False)
    scale = layer.output_scale().double()
    attention_ED = layer.input_scale()
    if attention_ED is not None:
        weight_EFD = weight_EFD * attention_ED.double()[:, None, :]
    return FoldedLayer((scale * weight_EFD).mT, scale * bias_EF, _router(layer.router), layer.k, False)


def _router(router: CosineMemoryRouter | ProjectedRouter) -> FoldedRouter:
    if isinstance(router, CosineMemoryRouter):
        return FoldedRouter(_unit(router.memory, router.eps))
    projection, temperature = router.projection, router.temperature()
    memory_EH = _unit(router.embeddings, router.eps)
    if temperature is not None:
        memory_EH = memory_EH * temperature.double()
    weight_HD = projection.weight.double()
    bias_H = weight_HD.new_zeros(router.proj_dim) if projection.bias is None else projection.bias.double()
    return FoldedRouter(memory_EH, (weight_HD.mT[None], bias_H[None]), router.over_all)


def _unit(rows_ED: Tensor, eps: float) -> Tensor:
    unit_ED: Tensor = rows_ED.double() / rows_ED.double().norm(dim=1, keepdim=True).clamp_min(eps)
    return unit_ED


def _linear_layer(layer: nn.Module) -> FoldedLayer:
    assert isinstance(layer, nn.Linear)
    weight_FD = layer.weight.double()
    bias_F = weight_FD.new_zeros(layer.out_features) if layer.bias is None else layer.bias.double()
    return FoldedLayer(weight_FD.mT[None], bias_F[None], None, 1, False)


def _fold_norm(layer: FoldedLayer, norm: nn.Module) -> None:
    """Apply a sum_r g_r (W_r x + b_r) + c = sum_r g_r (a W_r x + a b_r + c), true if a row's gates sum to 1."""
    if isinstance(norm, nn.Identity):
        return
    if not isinstance(norm, nn.BatchNorm1d) or norm.running_mean is None or norm.running_var is None:
        raise ConfigError(
            f"export: {type(norm).__name__} between layers does not fold into a matrix; "
            "train the student with norm 'batch' or 'none' to serve it"
        )
    if layer.router is not None and layer.router.over_all:
        raise ConfigError(
            "export: a batch norm does not fold into experts whose gates sum to less than 1; train the student "
            "with norm 'none' or variant 'paper' to serve it"
        )
    scale_F = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale_F = scale_F * norm.weight.double()
    shift_F = -norm.running_mean.double() * scale_F
    if norm.bias is not None:
        shift_F = shift_F + norm.bias.double()
    layer.weight_EDF = layer.weight_EDF * scale_F
    layer.bias_EF = layer.bias_EF * scale_F + shift_F


def _table(positions: Positions) -> Tensor:
    table = torch.as_tensor(positions).detach().cpu()
    if table.ndim != 2 or table.shape[1] == 0:
        raise ConfigError(f"export: expected 'positions' of shape [N, P], got {list(table.shape)}")
    return table.float()


def _names(argument: str, names: Sequence[str] | None, count: int) -> list[str] | None:
    if names is None:
        return None
    if len(names) != count:
        raise ConfigError(f"export: expected {count} {argument!r}, got {len(names)}")
    return [str(name) for name in names]
