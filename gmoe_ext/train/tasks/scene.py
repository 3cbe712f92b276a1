"""What a distillation may see, and when. N nodes that training sees, D student inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...data import NodeData

if TYPE_CHECKING:
    from ..config import Config


@dataclass(frozen=True)
class Scene:
    """What training may see, and what it is tested on.

    Attributes:
        data: the whole graph.
        observed: what training sees; the whole graph in the transductive setting.
        observed_nodes: global id of each observed node.
        heldout: global ids of the nodes that arrive after training; None in the transductive setting.
    """

    data: NodeData
    observed: NodeData
    observed_nodes: Tensor
    heldout: Tensor | None

    @classmethod
    def of(cls, config: Config, data: NodeData) -> Scene:
        """The scene of a run's setting."""
        if config.data.setting == "transductive":
            return cls(data, data, torch.arange(data.num_nodes, device=data.x.device), None)
        view = data.inductive(config.split_seed, config.heldout_rate)
        return cls(data, view.observed, view.observed_nodes, view.heldout)


@dataclass(frozen=True)
class Inputs:
    """Rows of the student: those it is trained on, and those of held-out nodes."""

    seen_ND: Tensor
    heldout: Tensor | None

    @classmethod
    def of(cls, scene: Scene, rows: Tensor) -> Inputs:
        """Of the rows of all nodes, those that the setting shows when."""
        if scene.heldout is None:
            return cls(rows, None)
        return cls(rows[scene.observed_nodes], rows[scene.heldout])
