"""The data of a run, and what training may see of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ... import data
from ...data import MoleculeData, NodeData
from ...data.load import files_of, read, refuse_options, resolve_root
from ...errors import ConfigError
from ...feature_rows import Features
from ..config import DEFAULT_DATA, Config, DataConfig


def load_data(config: Config) -> NodeData | MoleculeData:
    """Load the data set of a run, on the CPU.

    Raises:
        DataError: it is missing or damaged.
        ConfigError: no task here can be trained on it, or a setting does not apply to it.
    """
    chosen = config.data
    if chosen.name == DEFAULT_DATA and not files_of(chosen.name, resolve_root(chosen.root)):
        return _generate(config)
    if chosen.num_nodes is not None:
        raise ConfigError(f"data.num_nodes: applies to data '{DEFAULT_DATA}' only, got data '{chosen.name}'")
    loaded = read(
        chosen.name,
        chosen.root,
        split=chosen.split,
        split_seed=config.split_seed,
        train_per_class=chosen.train_per_class,
        val_per_class=chosen.val_per_class,
        metric=chosen.metric,
        row_normalize=chosen.row_normalize,
        allow_partial=chosen.allow_partial,
    )
    if isinstance(loaded, data.LinkData):
        raise ConfigError(f"data '{chosen.name}' holds links; link prediction is not yet supported")
    return loaded


def check_scored(loaded: NodeData | MoleculeData) -> None:
    """Check that a network on this data can be trained and scored.

    Raises:
        DataError: a part is empty, or its metric is undefined; the message names the part.
    """
    parts = {"train": loaded.train_idx, "val": loaded.val_idx, "test": loaded.test_idx}
    data.metrics.check_parts(loaded.name, loaded.metric, loaded.y, parts)


def _generate(config: Config) -> NodeData:
    chosen, default = config.data, DataConfig()
    options = ("split", "train_per_class", "val_per_class", "metric", "allow_partial")
    given = {option: getattr(chosen, option) != getattr(default, option) for option in options}
    refuse_options(DEFAULT_DATA, "generated with its own split", given)
    size = {} if chosen.num_nodes is None else {"num_nodes": chosen.num_nodes}
    made = data.synthetic.communities(seed=config.split_seed, **size)
    return made.row_normalized() if chosen.row_normalize else made


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
        """Split data as the setting of a run says."""
        if config.data.setting == "transductive":
            return cls(data, data, torch.arange(data.num_nodes, device=data.x.device), None)
        view = data.inductive(config.split_seed, config.heldout_rate)
        return cls(data, view.observed, view.observed_nodes, view.heldout)

    def divide(self, rows: Features) -> tuple[Features, Features | None]:
        """Divide rows of all nodes into those that training sees and those of held-out nodes, None without any."""
        if self.heldout is None:
            return rows, None
        return rows[self.observed_nodes], rows[self.heldout]
