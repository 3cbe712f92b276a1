"""Settings of a run: one tree of dataclasses, whose types both YAML files and flags are read by.

None means not set: the model, the data or another section decides. Only values that are set are passed on, so a recipe
need not unset options that its model does not have.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from ..errors import ConfigError
from .ranges import LAST, Allowed, Section, allowed, refusal, within

DEFAULT_DATA = "synthetic"  # data.name of the embedded default; needs no file
_TEACHER_TRAINING = ("epochs", "lr", "weight_decay", "patience")
_NO_OPTIONS = ("name", "model", *_TEACHER_TRAINING)  # fields of networks that `models.build` does not get


@dataclass
class DataConfig(Section):
    """Which data, and how it is split.

    Args:
        name: data set; NAME.npz or NAME_graphs.npz under root, or "synthetic" (a generated graph of communities).
        root: folder of the data files; None: the environment variable GMOE_EXT_DATA, or "data".
        setting: transductive training sees all nodes, inductive training does not see some of the test nodes.
        split: auto takes the file's split or draws one; file, per_class, random or the RULE of NAME_split_RULE.npz.
        split_seed: seed of a drawn split, of the held-out nodes and of synthetic data; None: the run's seed.
        train_per_class: training nodes of each class in a per_class split.
        val_per_class: validation nodes of each class in a per_class split.
        row_normalize: divide node features by their row's sum.
        allow_partial: accept a file that has the features of only some nodes.
        heldout_rate: share of the test nodes held out in the inductive setting; None: 0.2, or all of them
            under the released code's protocol where the split is public.
        metric: accuracy, rocauc or rmse; None: inferred from the labels.
        num_nodes: size of the synthetic graph; None: its default.
    """

    name: str = DEFAULT_DATA
    root: str | None = None
    setting: Literal["transductive", "inductive"] = "transductive"
    split: str = "auto"
    split_seed: int | None = within(None, 0, LAST)
    train_per_class: int = within(20, 1)
    val_per_class: int = within(30, 1)
    row_normalize: bool = False
    allow_partial: bool = False
    heldout_rate: float | None = within(None, 0, 1, "(]")
    metric: Literal["accuracy", "rocauc", "rmse"] | None = None
    num_nodes: int | None = within(None, 128, 10**8)


@dataclass
class NetworkConfig(Section):
    """The shape of a network: options of `gmoe_ext.models.build`.

    Args:
        num_layers: number of layers, input and output layer included.
        hidden_dim: width of the hidden layers.
        dropout: dropout rate.
        norm: between layers: none, batch, layer (students); per expert of a GMoE layer: routed (batch statistics over
            the rows an expert got), all_nodes (over all rows, dense in training). None: the model's default.
        num_experts: experts per layer (n in GMoE, E in RbM).
        num_hop1: how many of them are hop-1 experts (m in GMoE); None: all.
        k: experts that every node picks; None for an MoE student: by protocol (paper: 3, released_code: 4).
        aux_weight: weight of the importance and load losses (lambda, GMoE eq. 9).
        aux_over: mean or sum of these losses over the layers.
        combine: sum of gate times expert (GMoE eq. 2), or mean, that sum divided by the number of experts.
        scale_hidden: divide hidden_dim by sqrt(k), so that the network costs as much as its base (GMoE, section 3.2).
        input_attention: per-expert input attention (RbM eq. 5).
    """

    num_layers: int = within(2, 1, 1000)
    hidden_dim: int = within(256, 1, 2**20)
    dropout: float = within(0.5, 0, 1, "[)")
    norm: Literal["none", "batch", "layer", "routed", "all_nodes"] | None = None
    num_experts: int | None = within(None, 1, 2**16)
    num_hop1: int | None = within(None, 0, 2**16)
    k: int | None = within(None, 1, 2**16)
    aux_weight: float | None = within(None, 0)
    aux_over: Literal["mean", "sum"] | None = None
    combine: Literal["sum", "mean"] | None = None
    scale_hidden: bool | None = None
    input_attention: bool | None = None

    def build_args(self) -> dict[str, Any]:
        """Return the options that are set, as keyword arguments for `models.build`."""
        names = (f.name for f in dataclasses.fields(self) if f.name not in _NO_OPTIONS)
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass
class ModelConfig(NetworkConfig):
    """The network to train on labels (GMoE and its base networks).

    Args:
        name: gcn, gin, sage, gmoe-gcn, gmoe-gin, gmoe-sage, ...
    """

    name: str | None = None


@dataclass
class TeacherConfig(NetworkConfig):
    """The GNN that a student is distilled from; training settings that are not set are those of `train`.

    Args:
        model: sage, gcn, gmoe-gcn, ...
        epochs: maximum number of epochs.
        lr: learning rate of Adam.
        weight_decay: L2 penalty of Adam.
        patience: epochs without a better validation score before training stops; 0: it never does.
    """

    model: str | None = None
    epochs: int | None = within(None, 1)
    lr: float | None = within(None, 0, brackets="(]")
    weight_decay: float | None = within(None, 0)
    patience: int | None = within(None, 0)


@dataclass
class StudentConfig(NetworkConfig):
    """The student, which needs no graph; it is trained with the settings of `train` and `distill`.

    Args:
        model: rbm, moe, mlp or ensemble.
        num_members: ensemble: number of MLPs that vote.
        variant: MoE: router and pre-training of the paper or of the released_code. None: by protocol.
        first_layer_dropout: RbM, MoE: also drop inputs of the first layer's experts. None: by protocol (paper: no).
        shared_dropout: RbM, MoE: one dropout mask per row instead of one per row and expert.
        gate_gradient: RbM: let the task's gradient flow through the gates.
        memory: RbM: a buffer moved by averages and its own loss, or a parameter of Adam. None: by protocol (buffer).
        normalize_inputs: RbM: average the directions of rows into the memory; false: average the rows as they are.
        annealing: RbM: Delta of eq. 14; 0 keeps the memory's rate constant.
        annealing_epochs: RbM: T of eq. 14.
    """

    model: str | None = None
    num_members: int | None = within(None, 1, 1000)
    variant: Literal["paper", "released_code"] | None = None
    first_layer_dropout: bool | None = None
    shared_dropout: bool | None = None
    gate_gradient: bool | None = None
    memory: Literal["buffer", "parameter"] | None = None
    normalize_inputs: bool | None = None
    annealing: float | None = within(None, 0, 1, "[)")
    annealing_epochs: int | None = within(None, 1)


@dataclass
class DistillConfig(Section):
    """Losses, targets and schedule of the distillation (RbM, section 4; defaults follow the paper).

    Values of None are decided by `protocol`; see `gmoe_ext.train.tasks.distill`.

    Args:
        ce_weight: weight nu of the labels' cross entropy; the teacher's targets have 1 - nu (eqs. 9 and 12).
        tau: temperature of teacher and student in the distillation loss.
        normalized_tau: softmax after the division by tau; false: divide the log-probabilities (released code).
        reliable: sample neighbours as extra targets by the teacher's reliability (KRD).
        pair_weight: weight of a kept edge (v, u): degree, 1/|N(v)| (eq. 12); kept, 1/(kept edges of v); equal
            (released code).
        noise_std: standard deviation of the feature noise by which reliability is measured (eq. 10).
        noise_draws: number of noise draws (released code: 1).
        squared_reliability: squared change of entropy (eq. 10); false: its absolute value (released code).
        power_momentum: share of the sampling power that an update keeps.
        power_warmup: evaluations before the power begins to move.
        power_bins: bins that the power is fitted to.
        power_bin_offset: where in a bin the curve is read; None: by protocol (its centre; released code: 0.05).
        positions: append DeepWalk positions to the features.
        position_of: own gives observed nodes the position of their own walks; neighbours gives them the mean of their
            neighbours' positions, as held-out nodes have it.
        position_scale: none, or features, which gives positions the mean norm of the features.
        walk_length: nodes per walk.
        num_walks: walks per node.
        window: window of the skip-gram model.
        walk_epochs: passes of the skip-gram model over the walks.
        position_dim: length of a position.
        pretrain_epochs: RbM, MoE: epochs with one expert, before those of `train`; then the expert is cloned and
            routing starts.
        reset_optimizer: RbM, MoE: a new Adam when routing starts (released code: no).
        kmeans_restarts: RbM: number of k-means runs per layer.
        ema_rate: RbM: share of the old memory that an update keeps (eq. 4).
        memory_lr: RbM: step of a buffer memory along its self-similarity gradient; None: train.lr.
        commitment: RbM: weight of the commitment loss (eq. 6).
        self_similarity: RbM: weight of the self-similarity loss (eq. 7).
        load_balance: RbM, MoE: weight of the load-balance loss (eq. 8).
        batch_weights: batch size of code that sums gradients over batches: weigh cross entropy, distillation and
            memory losses by the number of such batches each has, and in full batch move an RbM's memories once per
            batch; 0: plain means, one move per forward. None: by protocol (0; released code: 4096).
        protocol: paper, or released_code to follow the released code wherever the two differ.
    """

    ce_weight: float = within(0.2, 0, 1)
    tau: float = within(1.0, 0, brackets="(]")
    normalized_tau: bool | None = None
    reliable: bool = True
    pair_weight: Literal["degree", "kept", "equal"] | None = None
    noise_std: float = within(1.0, 0, brackets="(]")
    noise_draws: int | None = within(None, 1, 10_000)
    squared_reliability: bool | None = None
    power_momentum: float = within(0.99, 0, 1)
    power_warmup: int = within(50, 0)
    power_bins: int = within(50, 1, 10**6)
    power_bin_offset: float | None = within(None, 0, 1)
    positions: bool = True
    position_of: Literal["own", "neighbours"] = "own"
    position_scale: Literal["none", "features"] = "none"
    walk_length: int = within(50, 1, 10_000)
    num_walks: int = within(5, 1, 10_000)
    window: int = within(5, 1, 10_000)
    walk_epochs: int = within(1, 1, 10_000)
    position_dim: int = within(64, 1, 2**16)
    pretrain_epochs: int = within(10, 0)
    reset_optimizer: bool | None = None
    kmeans_restarts: int = within(10, 1, 10_000)
    ema_rate: float = within(0.9, 0, 1)
    memory_lr: float | None = within(None, 0)
    commitment: float = within(0.05, 0)
    self_similarity: float = within(0.01, 0)
    load_balance: float = within(0.01, 0)
    batch_weights: int | None = within(None, 0)
    protocol: Literal["paper", "released_code"] = "paper"


@dataclass
class TrainConfig(Section):
    """The optimisation.

    Args:
        epochs: maximum number of epochs.
        batch_size: graphs (molecules) or nodes (students) per step; 0: all. Node GNNs always take all.
        lr: learning rate of Adam.
        weight_decay: L2 penalty of Adam.
        patience: epochs without a better validation score before training stops; 0: it never does.
        eval_every: epochs between two evaluations.
        keep_ties: an epoch with the same validation score as the best one replaces it.
        step_per: one optimizer step per batch, or one per epoch with summed gradients.
        precision: float32, or bf16-mixed: the forward under torch.autocast with bfloat16; weights, optimizer and scores
            stay float32.
        checkpoint_s: minimum number of seconds between two checkpoints; 0: one after every step.
    """

    epochs: int = within(100, 1)
    batch_size: int = within(32, 0)
    lr: float = within(1e-3, 0, brackets="(]")
    weight_decay: float = within(0.0, 0)
    patience: int = within(0, 0)
    eval_every: int = within(1, 1)
    keep_ties: bool = False
    step_per: Literal["batch", "epoch"] = "batch"
    precision: Literal["float32", "bf16-mixed"] = "float32"
    checkpoint_s: float = within(10.0, 0)


class Network(NamedTuple):
    """A network of a run: the key of its model setting, the model's name, and the options that are set."""

    key: str
    name: str
    options: dict[str, Any]


@dataclass
class Config(Section):
    """One run.

    Args:
        data: which data, and how it is split.
        model: the network to train on labels.
        teacher: the GNN a student is distilled from.
        student: the graph-free student.
        distill: losses, targets and schedule of the distillation.
        train: the optimisation.
        recipe: the shipped recipe that `--config` named; a label, which decides no number.
        run_dir: where everything is written; None: runs/NAME, see `parse.default_directory`.
        seed: seed of weights, dropout, batches and drawn splits.
        device: auto, cpu, cuda or cuda:N.
        resume: auto continues the run in run_dir, never starts from scratch, a path continues that run.
        dry_run: load the data, build the models, run one step of each, write nothing.
        offline: never download data.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    recipe: str | None = None
    run_dir: str | None = None
    seed: int = within(0, 0, LAST)
    device: str = "auto"
    resume: str = "never"
    dry_run: bool = False
    offline: bool = False

    @property
    def split_seed(self) -> int:
        """Seed of drawn splits and held-out nodes."""
        return self.seed if self.data.split_seed is None else self.data.split_seed

    @property
    def heldout_rate(self) -> float:
        """Share of the test nodes held out in the inductive setting."""
        return 0.2 if self.data.heldout_rate is None else self.data.heldout_rate

    def networks(self) -> dict[str, Network]:
        """Return the networks of the run, by section."""
        sections: list[tuple[str, str | None, NetworkConfig]] = [
            ("model.name", self.model.name, self.model),
            ("teacher.model", self.teacher.model, self.teacher),
            ("student.model", self.student.model, self.student),
        ]
        return {key.split(".")[0]: Network(key, name, part.build_args()) for key, name, part in sections if name}

    def teacher_train(self) -> TrainConfig:
        """Return the optimisation of the teacher: `train`, with what `teacher` sets."""
        own = {name: value for name in _TEACHER_TRAINING if (value := getattr(self.teacher, name)) is not None}
        return dataclasses.replace(self.train, **own)


# These change no number, so a run may be continued under other values.
_FREE = ("recipe", "run_dir", "device", "resume", "dry_run", "offline", "data.root", "train.checkpoint_s")


def flatten(config: Config) -> dict[str, Any]:
    """Return every setting as one flat mapping, {"data.name": "cora", ..., "seed": 0}."""
    flat: dict[str, Any] = {}
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, dict):
            flat.update({f"{name}.{key}": item for key, item in value.items()})
        else:
            flat[name] = value
    return flat


def fingerprint(config: Config) -> dict[str, Any]:
    """Return the settings that decide a run's numbers: `flatten` without paths, device and checkpoint timing."""
    return {key: value for key, value in flatten(config).items() if key not in _FREE}


def config_hash(config: Config) -> str:
    """Hash the settings of `fingerprint`; 16 hex digits."""
    return settings_hash(fingerprint(config))


def settings_hash(settings: dict[str, Any]) -> str:
    """First 16 hex digits of the SHA-256 of some settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def expected(key: str) -> Allowed | None:
    """Return what the setting or section ``key``, such as "train.lr", may be; None: there is none of this name."""
    section, _, name = key.rpartition(".")
    whole = allowed(Config)
    if not section:
        return whole.get(name)
    kind: Any = whole[section].kind if section in whole else None
    return None if kind in (None, bool, int, float, str) else allowed(kind).get(name)


def from_dict(values: dict[str, Any]) -> Config:
    """Make a Config from nested dictionaries, as `dataclasses.asdict` returns them.

    Raises:
        ConfigError: an unknown section or key, or a value of another type or outside its range.
    """
    sections = {name: one for name, one in allowed(Config).items() if issubclass(one.kind, Section)}
    for name, value in values.items():
        if name not in allowed(Config):
            raise ConfigError(f"settings do not fit this version: unknown key '{name}'")
        if name in sections and not isinstance(value, dict):
            raise refusal(name, sections[name], value)
    try:
        parts = {k: sections[k].kind(**v) if k in sections else v for k, v in values.items()}
        return Config(**parts)
    except TypeError as error:
        raise ConfigError(f"settings do not fit this version: {error}") from error
