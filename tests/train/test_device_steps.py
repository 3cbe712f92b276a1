"""One epoch of every task on a GPU that is not there: all tensors on it, and no step waits for it."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from gmoe_ext import models
from gmoe_ext.data import synthetic
from gmoe_ext.distill import ReliableSampler, StudentTargets
from gmoe_ext.train import loop
from gmoe_ext.train.config import Config, DistillConfig, TrainConfig
from gmoe_ext.train.fit_state import FitState
from gmoe_ext.train.tasks.distill import resolve_protocol
from gmoe_ext.train.tasks.molecule import MoleculeTask
from gmoe_ext.train.tasks.node import NodeTask
from gmoe_ext.train.tasks.scene import Scene
from gmoe_ext.train.tasks.student import build_task

from ..fake_cuda import FakeCuda, WouldWait
from ..ops.test_contract_device import no_waiting

EXPERTS = {"num_experts": 4, "num_hop1": 2, "k": 2}
NODE_MODELS = [("gcn", {}), ("sage", {}), ("gin", {"norm": "batch"})]
NODE_MODELS += [(name, {**EXPERTS, "norm": "batch"}) for name in ("gmoe-gcn", "gmoe-sage", "gmoe-gin")]
MOLECULE_MODELS = [("gcn", {}), ("gin", {})] + [(name, EXPERTS) for name in ("gmoe-gcn", "gmoe-sage", "gmoe-gin")]
MOLECULE_MODELS += [
    ("gmoe-gcn", {"num_experts": 8, "k": 2}),
    ("gmoe-gcn", {**EXPERTS, "norm": "all_nodes", "combine": "mean"}),
]
SHAPE = {"hidden_dim": 8, "num_layers": 2, "dropout": 0.5}


class Steps:
    """What the loop needs of a run between two epochs: nothing."""

    def step_done(self, *_args):
        return


def enter(task, epoch):
    """Prepare an epoch here, where waiting is allowed, and leave only its steps to the loop; returns the batches."""
    task.routing = epoch >= getattr(task, "pretrain_epochs", 0)  # without a k-means start
    task.enter_epoch(epoch)
    batches = list(task.batches(epoch))
    task.enter_epoch, task.batches = (lambda _epoch: None), (lambda _epoch: batches)
    return batches


class OneEpoch:
    """Trains one epoch: on the CPU, which fills the caches of graphs and optimizer, then on the fake device."""

    def __init__(self, monkeypatch):
        self.patch, self.fake = monkeypatch, FakeCuda(monkeypatch)

    def run(self, task, train, epoch=0, on_the_host=None):
        """``on_the_host``: tensors that stay there, the ids of the batches too; None: batches are on the device."""
        batches = enter(task, epoch)
        loop._train_epoch(task, train, FitState(task.phase, task.metric, epochs=epoch), Steps())
        stays = [] if on_the_host is None else [*on_the_host, *batches]
        placed, moved = self.fake.place((task, batches), stays)
        placed.batches = lambda _epoch: moved
        state = FitState(task.phase, task.metric, epochs=epoch)
        with self.patch.context() as patch, self.fake.watched():
            patch.setattr(loop, "_means", lambda state: {})  # the end of the epoch, where the host does wait
            loop._train_epoch(placed, train, state, Steps())
        assert state.steps >= 1
        for name, value in placed.model.state_dict().items():
            assert value.device.type == "cuda", f"{name} is on {value.device}"
        assert all(total.device.type == "cuda" for total in state.sums.values())


@pytest.fixture
def epoch(monkeypatch):
    return OneEpoch(monkeypatch)


@pytest.fixture(params=["float32", "bf16-mixed"])
def train(request, monkeypatch):
    """Settings in both precisions; torch refuses its autocast for a GPU that is not there, so its switch is set."""
    autocast = loop.autocast

    @contextmanager
    def switched(device, precision):
        if device.type != "cuda" or precision == "float32":
            with autocast(device, precision):
                yield
            return
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.set_autocast_enabled("cuda", True)
        torch.autocast_increment_nesting()
        try:
            yield
        finally:
            if torch.autocast_decrement_nesting() == 0:
                torch.clear_autocast_cache()
            torch.set_autocast_enabled("cuda", False)

    monkeypatch.setattr(loop, "autocast", switched)
    return TrainConfig(batch_size=16, precision=request.param)


def node_task(name, options, train, device="cpu"):
    data = synthetic.communities(num_nodes=200, num_features=8, num_classes=3).to(device)
    model = models.build(name, in_dim=8, out_dim=data.num_classes, **SHAPE, **options).to(device)
    return NodeTask(name, model, Scene.of(Config(), data), train)


def molecule_task(name, options, train, device="cpu"):
    data = synthetic.molecules(num_graphs=40).to(device)
    model = models.build(name, input="molecule", out_dim=data.num_outputs, **SHAPE, **options).to(device)
    return MoleculeTask(name, model, data, train, seed=0, two_hop=model.needs_two_hop)


def student_task(name, options, train, device="cpu", **settings):
    data = synthetic.communities(num_nodes=200, num_features=8, num_classes=3).to(device)
    config = resolve_protocol(Config(train=train, distill=DistillConfig(pretrain_epochs=2, **settings)), data.split)
    experts = {"num_experts": 4, "k": 2} if name in ("rbm", "moe") else {}
    model = models.build(name, in_dim=8, out_dim=data.num_classes, **SHAPE, **experts, **options).to(device)
    sampler = ReliableSampler(data.graph, torch.rand(data.num_nodes).to(device), config.distill.pair_weight)
    logits = torch.randn(data.num_nodes, data.num_classes).to(device)
    scene = Scene.of(config, data)
    targets = StudentTargets(logits, sampler, config.distill.tau)
    return build_task(model, scene, data.x, targets, config)


@pytest.mark.parametrize(("name", "options"), NODE_MODELS, ids=str)
def test_a_node_step_stays_on_the_device(epoch, train, name, options):
    epoch.run(node_task(name, options, train), train)


@pytest.mark.parametrize(("name", "options"), MOLECULE_MODELS, ids=str)
def test_a_molecule_step_stays_on_the_device(epoch, train, name, options):
    task = molecule_task(name, options, train)
    data = task.data
    epoch.run(task, train, on_the_host=[data.node_offsets, data.train_idx, data.val_idx, data.test_idx])


STUDENTS = [
    pytest.param("mlp", {"norm": "batch"}, {}, 0, id="mlp"),
    pytest.param("ensemble", {"num_members": 2}, {}, 0, id="ensemble"),
    pytest.param("moe", {"variant": "paper"}, {}, 3, id="moe"),
    pytest.param("moe", {"variant": "released_code"}, {"protocol": "released_code"}, 3, id="moe-released_code"),
    pytest.param("rbm", {}, {}, 0, id="rbm-pretraining"),
    pytest.param("rbm", {"norm": "batch"}, {}, 3, id="rbm"),
    pytest.param("rbm", {"memory": "parameter"}, {"protocol": "released_code", "tau": 2.0}, 3, id="rbm-released_code"),
    pytest.param("rbm", {"gate_gradient": True}, {"pair_weight": "kept"}, 3, id="rbm-gate-gradient"),
]


@pytest.mark.parametrize("batch_size", [0, 64])
@pytest.mark.parametrize(("name", "options", "settings", "at"), STUDENTS)
def test_a_student_step_stays_on_the_device(epoch, train, batch_size, name, options, settings, at):
    train.batch_size = batch_size
    epoch.run(student_task(name, options, train, **settings), train, at)


@pytest.mark.parametrize("precision", ["float32", "bf16-mixed"])
@pytest.mark.parametrize(
    ("make", "name", "options", "at"),
    [
        (node_task, "gmoe-gcn", {**EXPERTS, "norm": "batch"}, 0),
        (molecule_task, "gmoe-gin", EXPERTS, 0),
        (molecule_task, "gmoe-gcn", EXPERTS, 0),
        (student_task, "rbm", {"norm": "batch"}, 3),
    ],
)
def test_torch_sees_nobody_wait_on_a_gpu(gpu, monkeypatch, make, name, options, at, precision):
    train = TrainConfig(batch_size=16, precision=precision)
    task = make(name, options, train, gpu)
    enter(task, at)
    loop._train_epoch(task, train, FitState(task.phase, task.metric, epochs=at), Steps())
    monkeypatch.setattr(loop, "_means", lambda state: {})
    with no_waiting():
        loop._train_epoch(task, train, FitState(task.phase, task.metric, epochs=at), Steps())


def test_the_watch_sees_what_waits(monkeypatch):
    fake = FakeCuda(monkeypatch)
    x, index = torch.randn(4, 3), torch.tensor([0, 2])
    on_device = fake.place(x)
    for waits in (
        lambda: on_device.sum().item(),
        lambda: on_device[on_device > 0],
        lambda: on_device.cpu(),
        lambda: on_device[index],
        lambda: x.to("cuda:0"),
        lambda: on_device + x,
    ):
        with fake.watched(), pytest.raises((WouldWait, RuntimeError)):
            waits()
    with fake.watched():
        assert x.to("cuda:0", non_blocking=True).device.type == "cuda"
