"""What can be trained: node classification, molecule prediction, distillation.

Each module holds its `loop.Task` classes and one function `train(config, run, device) -> report.Outcome`, which loads
the data, builds the models and fits them; `start` chooses among them by the settings and the data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import ConfigError

if TYPE_CHECKING:
    import torch

    from ...data import MoleculeData, NodeData
    from ..config import Config
    from ..report import Outcome
    from ..run import Run


def load_data(config: Config) -> NodeData | MoleculeData:
    """The data set of a run, on the CPU.

    Raises:
        DataError: it is missing, damaged or of a kind that cannot be trained here.
    """
    from ... import data
    from ..config import DEFAULT_DATA

    chosen = config.data
    if chosen.name == DEFAULT_DATA:
        size = {} if chosen.num_nodes is None else {"num_nodes": chosen.num_nodes}
        made = data.synthetic.communities(seed=config.split_seed, **size)
        return made.row_normalized() if chosen.row_normalize else made
    loaded = data.load(
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
        raise ConfigError(f"data '{chosen.name}' holds links; there is no link prediction task")
    return loaded


def kind(config: Config) -> str:
    """What the settings ask for: "story" (both, as the embedded default), "distill" or "supervised"."""
    if config.student.model is not None and config.teacher.model is not None and config.model.name is not None:
        return "story"
    if config.student.model is not None:
        return "distill"
    if config.model.name is not None:
        return "supervised"
    raise ConfigError(
        f"no model is set for data '{config.data.name}'\n"
        "  mend: pass --config RECIPE.yaml, or --model.name gmoe-gcn, or --teacher.model sage --student.model rbm"
    )


def check_extras(config: Config) -> None:
    """Ask for the optional libraries of a run before it begins: a student needs them only after its teacher's training.

    Raises:
        MissingExtraError: one is not installed.
    """
    if config.student.model is None:
        return
    from ...distill import extras

    needs = {
        "scipy.optimize": config.distill.reliable,  # first: the others need it, too
        "gensim.models": config.distill.positions,
        "sklearn.cluster": config.student.model == "rbm",
    }
    for module, needed in needs.items():
        if needed:
            extras.load(module)


def start(config: Config, run: Run, device: torch.device) -> Outcome:
    """Run what the settings ask for."""
    from ...data import MoleculeData
    from . import molecule, node

    if kind(config) == "story":
        from .. import default

        return default.train(config, run, device)
    if kind(config) == "distill":
        from . import distill

        return distill.train(config, run, device)
    loaded = load_data(config)
    if isinstance(loaded, MoleculeData):
        return molecule.train(config, run, device, loaded)
    return node.train(config, run, device, loaded)
