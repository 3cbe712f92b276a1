"""Distillation from end to end on a small graph: both settings, no leaks, resumed runs, both protocols."""

import dataclasses

import numpy as np
import pytest
import torch

from gmoe_ext import checkpoint
from gmoe_ext.data import NodeData
from gmoe_ext.nn import CosineMemoryRouter
from gmoe_ext.terminal import Interrupted, Progress, Stop
from gmoe_ext.train.config import Config, DataConfig, DistillConfig, StudentConfig, TeacherConfig, TrainConfig
from gmoe_ext.train.run import Run
from gmoe_ext.train.tasks import distill
from gmoe_ext.train.tasks.distill import resolve_protocol
from gmoe_ext.train.tasks.student import RbMTask, StudentTask

pytest.importorskip("gensim")
pytest.importorskip("sklearn")


def communities(num_nodes=120, num_classes=3, seed=0):
    """Blobs whose edges mostly stay within a class."""
    draw = np.random.default_rng(seed)
    y = draw.permutation(np.arange(num_nodes) % num_classes)
    x = np.eye(num_classes)[y].repeat(3, axis=1) + draw.normal(size=(num_nodes, 3 * num_classes))
    pairs = draw.integers(num_nodes, size=(2, 12 * num_nodes))
    near = (y[pairs[0]] == y[pairs[1]]) | (draw.random(pairs.shape[1]) < 0.1)
    ids = draw.permutation(num_nodes)
    return NodeData.from_arrays("tiny", x, pairs[:, near], y, ids[:30], ids[30:60], ids[60:])


def settings(setting="transductive", model="rbm", protocol="paper", **sections):
    shape = {"rbm": {"num_experts": 4, "k": 2}, "moe": {"num_experts": 4, "k": 2}, "ensemble": {"num_members": 2}}
    walks = {"walk_length": 8, "num_walks": 2, "window": 2, "position_dim": 4}
    return Config(
        data=DataConfig(name="tiny", setting=setting),
        teacher=TeacherConfig(model="sage", hidden_dim=16, epochs=20),
        student=StudentConfig(model=model, hidden_dim=16, dropout=0.3, **shape.get(model, {})),
        distill=DistillConfig(
            **{**walks, "pretrain_epochs": 3, "noise_draws": 2, "power_warmup": 4, "protocol": protocol},
            **sections.pop("distill", {}),
        ),
        train=TrainConfig(**{"epochs": 12, "batch_size": 0, "lr": 0.01, **sections}),
    )


class Cut(Run):
    """A run that is told to stop after a number of steps."""

    def __init__(self, *args, stop_at=None, **kwargs):
        self.request = Stop()
        super().__init__(*args, stop=self.request, **kwargs)
        self.stop_at, self.steps, self.lines = stop_at, 0, []

    def step_done(self, task, train, state):
        self.steps += 1
        if self.steps == self.stop_at:
            self.request.requested = 15
        super().step_done(task, train, state)


@pytest.fixture
def job(tmp_path, monkeypatch):
    """job(config, ...) runs a distillation and gives (outcome, student)."""

    def start(config, data=None, place="run", stop_at=None):
        monkeypatch.setattr(distill, "load_data", lambda config: data or communities())
        students = []
        fit = distill.train_student
        monkeypatch.setattr(distill, "train_student", lambda *a: students.append(fit(*a)) or students[-1])
        run = Cut(config, tmp_path / place, Progress(quiet=True), stop_at=stop_at)
        try:
            outcome = distill.distill(config, run, torch.device("cpu")).outcome()
        finally:
            monkeypatch.setattr(distill, "train_student", fit)
        return outcome, students[0][0]

    return start


def same_weights(left, right):
    left, right = left.state_dict(), right.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("setting", ["transductive", "inductive"])
@pytest.mark.parametrize("model", ["rbm", "moe", "mlp", "ensemble"])
def test_a_student_learns_in_both_settings(job, setting, model):
    outcome, student = job(settings(setting, model))
    assert outcome.main.model.name == student.name == model
    assert outcome.teacher.model.name == "sage"
    assert outcome.main.fit.val_best > 0.6 and outcome.teacher.fit.val_best > 0.6
    assert outcome.main.fit.epochs == (15 if model in ("rbm", "moe") else 12)


@pytest.mark.parametrize("model", ["rbm", "moe"])
def test_only_routed_weights_are_selected(job, model):
    outcome, student = job(settings(model=model, epochs=1))
    assert outcome.main.fit.best_epoch == 4
    assert not any(layer.pretraining for layer in student.layers)


def test_the_same_seed_gives_the_same_student(job):
    first, second = job(settings(), place="a"), job(settings(), place="b")
    assert same_weights(first[1], second[1])
    assert first[0].main.fit.test_best == second[0].main.fit.test_best


def test_nothing_of_held_out_nodes_reaches_an_inductive_student(job):
    config, data = settings("inductive"), communities()
    heldout = data.inductive(config.split_seed, 0.2).heldout
    x, y = data.x.numpy().copy(), data.y.numpy().copy()
    x[heldout], y[heldout] = 100.0, (y[heldout] + 1) % 3
    edges = data.graph.edge_index().numpy()
    away = np.isin(edges, heldout.numpy()).any(0)
    rewired = np.concatenate([edges[:, ~away], np.stack([heldout.numpy(), np.roll(heldout.numpy(), 1)])], 1)
    scrambled = NodeData.from_arrays("tiny", x, rewired, y, data.train_idx, data.val_idx, data.test_idx)
    plain, changed = job(config, data, "a"), job(config, scrambled, "b")
    assert same_weights(plain[1], changed[1])
    assert plain[0].main.fit.val_best == changed[0].main.fit.val_best
    assert plain[0].main.fit.test_best != changed[0].main.fit.test_best


def test_labels_outside_the_training_set_reach_no_weights(job):
    data = communities()
    y = data.y.clone()
    y[data.test_idx] = (y[data.test_idx] + 1) % 3
    plain, changed = job(settings(), data, "a"), job(settings(), dataclasses.replace(data, y=y), "b")
    assert same_weights(plain[1], changed[1])


@pytest.mark.parametrize(
    ("stop_at", "protocol", "model"),  # in the teacher, pre-training, the first routed epoch, later
    [(at, "paper", "rbm") for at in (7, 22, 23, 24, 29)]
    + [(29, "released_code", "rbm"), (24, "paper", "moe"), (22, "released_code", "moe"), (29, "paper", "ensemble")],
)
def test_a_resumed_run_equals_an_uninterrupted_one(job, stop_at, protocol, model):
    config = settings(protocol=protocol, model=model)
    whole, student = job(config, place="whole")
    with pytest.raises(Interrupted):
        job(config, place="cut", stop_at=stop_at)
    torch.rand(3)
    resumed, again = job(config, place="cut")
    assert same_weights(student, again)
    assert resumed.main.fit.test_best == whole.main.fit.test_best
    assert resumed.main.fit.best_epoch == whole.main.fit.best_epoch


def test_a_run_resumed_inside_an_epoch_of_batches_equals_an_uninterrupted_one(job):
    config = settings(batch_size=50)
    student = job(config, place="whole")[1]
    with pytest.raises(Interrupted):
        job(config, place="cut", stop_at=20 + 4 * 4 + 2)
    assert same_weights(student, job(config, place="cut")[1])


@pytest.mark.parametrize("method", ["enter_epoch", "batches", "evaluate"])
def test_calling_it_twice_changes_nothing(job, monkeypatch, method):
    config = settings(batch_size=50)
    student = job(config, place="once")[1]
    once = getattr(RbMTask, method)

    def twice(task, *args):
        once(task, *args)
        return once(task, *args)

    monkeypatch.setattr(RbMTask, method, twice)
    assert same_weights(student, job(config, place="twice")[1])


def test_positions_are_walked_once_per_run_directory(job, monkeypatch, tmp_path):
    config = settings()
    job(config)
    tensors, _ = checkpoint.load(tmp_path / "run" / "checkpoints" / "positions.safetensors")
    assert tensors["positions"].shape == (120, 4)
    monkeypatch.setattr(distill, "deepwalk", lambda *a, **k: pytest.fail("walked again"))
    job(config)


def test_the_protocol_of_the_released_code_runs_and_differs(job):
    paper, released = job(settings(), place="a"), job(settings(protocol="released_code"), place="b")
    assert "layers.0.router.memory" in dict(released[1].named_parameters())
    assert not same_weights(paper[1], released[1])


def test_the_released_code_moves_memories_once_per_batch_of_pairs(job, monkeypatch):
    moves, batches = [], []
    follow, losses = CosineMemoryRouter.follow_, RbMTask.losses

    def count(router, *args):
        moves.append(router)
        follow(router, *args)

    def watch(task, batch):
        if not task.model.layers[0].pretraining:
            full, rest = divmod(task.drawn.num_pairs, 50)
            batches.append(1 + full + (rest > 1))  # the 30 training nodes are one batch, a single pair is none
        return losses(task, batch)

    monkeypatch.setattr(CosineMemoryRouter, "follow_", count)
    monkeypatch.setattr(RbMTask, "losses", watch)
    job(settings(protocol="released_code", distill={"batch_weights": 50}))
    assert len(batches) == 12 and min(batches) > 4
    assert len(moves) == 2 * sum(batches)  # of each of the two layers


def test_protocol_fills_only_what_is_open():
    config = settings(protocol="released_code", distill={"pair_weight": "kept"})
    full = resolve_protocol(config, "public")
    assert (full.distill.pair_weight, full.distill.normalized_tau, full.distill.batch_weights) == ("kept", False, 4096)
    assert (full.student.memory, full.student.first_layer_dropout, full.heldout_rate) == ("parameter", True, 1.0)
    assert resolve_protocol(config, "per_class").heldout_rate == 0.2
    assert resolve_protocol(settings(model="mlp"), "public").student.memory is None
    released = Config(student=StudentConfig(model="moe"), distill=DistillConfig(protocol="released_code"))
    moe = resolve_protocol(released, "public")
    assert (moe.student.k, moe.student.variant, moe.student.memory) == (4, "released_code", None)
    assert config.distill.normalized_tau is None


@pytest.mark.parametrize("reset", [True, False])
def test_clones_start_with_a_fresh_optimizer_state(job, monkeypatch, reset):
    seen = {}
    start = RbMTask._optimize_clones

    def watch(task):
        weight = task.model.layers[0].experts.weight
        seen["before"] = task.optimizer.state[weight]["exp_avg"].clone()
        start(task)
        seen["state"] = {name: value.clone() for name, value in task.optimizer.state.get(weight, {}).items()}

    monkeypatch.setattr(RbMTask, "_optimize_clones", watch)
    job(settings(distill={"reset_optimizer": reset}))
    if reset:
        assert not seen["state"]
    else:
        assert torch.equal(seen["state"]["exp_avg"][0], seen["before"][0]) and seen["before"][0].abs().max() > 0
        assert seen["state"]["exp_avg"][1:].abs().max() == 0 and seen["state"]["step"] == 3


def test_members_of_an_ensemble_get_the_gradients_they_would_get_alone(job, monkeypatch):
    compared = []
    losses = StudentTask.losses

    def watch(task, batch):
        result = losses(task, batch)
        if task.model.name == "ensemble":
            together = torch.autograd.grad(result["loss"], list(task.model.parameters()), retain_graph=True)
            apart = []
            for member in task.model.members:
                task.learners = [member]
                apart.extend(torch.autograd.grad(losses(task, batch)["loss"], list(member.parameters())))
            task.learners = task.model.learners()
            compared.append((together, tuple(apart)))
        return result

    monkeypatch.setattr(StudentTask, "losses", watch)
    config = settings(model="ensemble")
    config.student.dropout = 0.0
    job(config)
    assert len(compared) == 12
    torch.testing.assert_close(*zip(*compared, strict=True))


def test_without_neighbours_and_positions_an_mlp_is_glnn(job):
    config = settings(model="mlp", distill={"reliable": False, "positions": False})
    _, student = job(config)
    assert student.config["in_dim"] == 9


def test_two_networks_compete_and_the_better_teaches(job):
    config = settings()
    config.model.name, config.model.hidden_dim = "gcn", 16
    outcome, _ = job(config)
    assert {outcome.teacher.model.name, outcome.others[0].model.name} == {"sage", "gcn"}
    assert outcome.teacher.fit.val_best >= outcome.others[0].fit.val_best


def test_a_dry_run_writes_nothing(job, tmp_path):
    config = dataclasses.replace(settings(), dry_run=True)
    job(config)
    assert not (tmp_path / "run").exists()
