"""A fit continued from a checkpoint equals one that was never interrupted."""

import dataclasses
import json
import re

import pytest
import torch
from torch import nn

from gmoe_ext import checkpoint
from gmoe_ext.checkpoint import CheckpointError
from gmoe_ext.errors import ConfigError, GmoeError
from gmoe_ext.terminal import Interrupted, Progress, Stop
from gmoe_ext.train import fit_state, loop
from gmoe_ext.train.config import Config, TrainConfig
from gmoe_ext.train.fit_state import Task, epoch_generator
from gmoe_ext.train.loop import fit
from gmoe_ext.train.run import Run


class Toy(Task):
    """Regression with dropout, an own running value, a random shift per epoch, and one change in the third epoch."""

    phase, metric = "toy", "rmse"

    def __init__(self, seed=0):
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(40, 4, generator=generator)
        self.y = self.x.sum(1, keepdim=True)
        self.shift = 0.0
        self.average = torch.zeros(8, 4)
        self.widened = False
        self.stop_at = None
        self.stop = Stop()
        self.steps = 0
        self.entered = []

    def enter_epoch(self, epoch):
        self.entered.append(epoch)
        self.shift = float(torch.rand((), generator=epoch_generator(7, epoch)))
        if epoch >= 2 and not self.widened:
            self.widened = True
            self.model[0].weight.data *= 1.5

    def batches(self, epoch):
        order = torch.randperm(40, generator=torch.Generator().manual_seed(epoch))
        return order.split(10)

    def losses(self, batch):
        loss = (self.model(self.x[batch] + self.shift) - self.y[batch]).square().mean()
        return {"loss": loss, "double": 2 * loss}

    def after_step(self):
        self.average = 0.9 * self.average + 0.1 * self.model[0].weight
        self.steps += 1
        if self.steps == self.stop_at:
            self.stop.requested = 15

    def evaluate(self):
        error = (self.model(self.x) - self.y).square().mean().sqrt().item()
        return {"val": error, "test": error + 1}

    def state(self):
        return {"widened": self.widened, "average": self.average}

    def load_state(self, state):
        self.widened, self.average = state["widened"], state["average"]


def start(tmp_path, stop_at=None, **train):
    config = Config(train=TrainConfig(epochs=5, **train))
    stop = Stop()
    run = Run(config, tmp_path, Progress(quiet=True), stop)
    run.begin("toy")
    task = Toy()
    task.stop, task.stop_at = stop, stop_at
    return task, config.train, run


def weights(task):
    return torch.cat([value.double().reshape(-1) for value in task.model.state_dict().values()])


@pytest.mark.parametrize(
    ("step_per", "stop_at"),
    [("batch", at) for at in (1, 3, 4, 8, 9, 11)] + [("epoch", at) for at in (1, 2, 3, 4)],
)
def test_a_resumed_fit_equals_an_uninterrupted_one(tmp_path, step_per, stop_at):
    task, train, run = start(tmp_path / "whole", step_per=step_per)
    result = fit(task, train, run)
    cut, train, run = start(tmp_path / "cut", stop_at=stop_at, step_per=step_per)
    with pytest.raises(Interrupted) as interrupted:
        fit(cut, train, run)
    assert interrupted.value.exit_code == 143
    rest, train, run = start(tmp_path / "cut", step_per=step_per)
    torch.rand(7)
    resumed = fit(rest, train, run)
    assert torch.equal(weights(rest), weights(task))
    assert torch.equal(rest.average, task.average)
    assert dataclasses.replace(resumed, wall_s=result.wall_s) == result


def test_an_epoch_is_entered_again_on_resume_and_only_then(tmp_path):
    task, train, run = start(tmp_path, stop_at=6)
    with pytest.raises(Interrupted):
        fit(task, train, run)
    rest, train, run = start(tmp_path)
    fit(rest, train, run)
    assert (task.entered, rest.entered) == ([0, 1], [1, 2, 3, 4])


@pytest.mark.parametrize("seed", [0, 3, 10**14, 2**63])
def test_every_seed_and_epoch_has_its_own_order(seed):
    draw = [torch.randperm(50, generator=epoch_generator(seed, epoch)).tolist() for epoch in (0, 1, 0)]
    assert draw[0] == draw[2] != draw[1]
    if seed < 10**12:  # what a shorter formula gave, so that runs repeat
        assert draw[1] == torch.randperm(50, generator=torch.Generator().manual_seed(seed * 1_000_003 + 1)).tolist()


def test_metrics_of_a_resumed_fit_have_every_epoch_once(tmp_path):
    task, train, run = start(tmp_path, stop_at=9)
    with pytest.raises(Interrupted):
        fit(task, train, run)
    with open(run.metrics_path, "a") as file:
        file.write('{"epoch": "half a rec')
    task, train, run = start(tmp_path)
    fit(task, train, run)
    records = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2, 3, 4, 5]
    assert all(record["double"] == pytest.approx(2 * record["loss"]) for record in records)


def test_best_weights_are_those_of_the_best_validation_epoch(tmp_path):
    task, train, run = start(tmp_path)
    result = fit(task, train, run)
    task.model.eval()
    assert task.evaluate()["val"] == pytest.approx(result.val_best)
    assert result.test_at_best_val == pytest.approx(result.val_best + 1)


def test_a_finished_fit_is_not_trained_again(tmp_path):
    task, train, run = start(tmp_path)
    first = fit(task, train, run)
    again, train, run = start(tmp_path)
    assert fit(again, train, run) == first
    assert again.steps == 0
    assert torch.equal(weights(again), weights(task))


def test_more_epochs_continue_a_finished_fit(tmp_path):
    task, train, run = start(tmp_path)
    fit(task, train, run)
    more, train, run = start(tmp_path)
    run.config.train.epochs = train.epochs = 8
    assert fit(more, train, run).epochs == 8
    assert more.steps == 12


def test_other_settings_are_refused_by_name(tmp_path):
    task, train, run = start(tmp_path)
    fit(task, train, run)
    task, train, run = start(tmp_path, lr=0.5)
    with pytest.raises(ConfigError, match=r"train\.lr: 0\.001 in the checkpoint, 0\.5 now"):
        fit(task, train, run)


@pytest.mark.parametrize("damage", ["cut", "flip", "foreign", "empty"])
def test_a_damaged_checkpoint_is_refused(tmp_path, damage):
    task, train, run = start(tmp_path)
    fit(task, train, run)
    path = run.checkpoint_path("toy")
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[:-9]
    elif damage == "flip":
        content[-5] ^= 4
    elif damage == "empty":
        content = bytearray()
    path.write_bytes(content)
    if damage == "foreign":
        from safetensors.torch import save_file

        save_file({"weight": torch.zeros(3)}, path)
    task, train, run = start(tmp_path)
    with pytest.raises(CheckpointError, match="fix: --resume never"):
        fit(task, train, run)


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("saved", [True, False])
def test_a_loss_that_is_not_finite_ends_the_run_and_names_step_batch_and_last_good_checkpoint(tmp_path, value, saved):
    task, train, run = start(tmp_path, checkpoint_s=0.0 if saved else 1000.0)
    losses = task.losses

    def spoilt(batch):
        found = losses(batch)
        return found if task.steps < 6 else found | {"loss": found["loss"] * float(value)}

    task.losses = spoilt
    last = f"{run.checkpoint_path('toy')}, step 6" if saved else "none yet"
    message = f"toy: the loss is {value} in epoch 2, batch 3, step 7; last good checkpoint: {last}\n  fix: lower"
    with pytest.raises(GmoeError, match=re.escape(message)):
        fit(task, train, run)
    if saved:
        again, train, run = start(tmp_path)
        fit(again, train, run)
        whole, train, run = start(tmp_path / "whole")
        fit(whole, train, run)
        assert again.steps == 14 and torch.equal(weights(again), weights(whole))


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    task, train, run = start(tmp_path, checkpoint_s=0.0)
    after_step = task.after_step

    def spoil():
        after_step()
        if task.steps == 6:
            task.model[4].bias.data.fill_(float("nan"))

    task.after_step = spoil
    where = r"weight '4\.bias' is no longer finite after step 6 \(epoch 2, batch 2\)"
    with pytest.raises(GmoeError, match=rf"{where}; last good checkpoint: .*, step 5\n"):
        fit(task, train, run)
    assert checkpoint.load(run.checkpoint_path("toy"))[1]["fit"]["steps"] == 5


def test_patience_counts_from_the_best_epoch(tmp_path):
    task, train, run = start(tmp_path, patience=2)
    scores = iter([3.0, 1.0, 2.0, 2.0, 0.0])
    task.evaluate = lambda: {"val": (score := next(scores)), "test": score}
    result = fit(task, train, run)
    assert (result.best_epoch, result.epochs, result.val_best) == (2, 4, 1.0)


def test_a_dry_run_writes_nothing(tmp_path):
    task, train, run = start(tmp_path / "none")
    run.dry_run = True
    fit(task, train, run)
    assert task.steps == 1
    assert not (tmp_path / "none").exists()


class Loading(Toy):
    """Notes when a batch is loaded and when it is trained on."""

    def __init__(self):
        super().__init__()
        self.told = []

    def load(self, batch):
        self.told.append(("load", int(batch[0])))
        return batch

    def losses(self, batch):
        self.told.append(("losses", int(batch[0])))
        return super().losses(batch)


@pytest.mark.parametrize(("device", "ahead"), [("cpu", 0), ("cuda", 1)])
def test_a_gpu_has_the_next_batch_before_it_needs_it(device, ahead):
    task = Loading()
    batches = task.batches(0)
    for batch in loop._loaded(task, batches, torch.device(device)):
        task.losses(batch)
    order = [int(batch[0]) for batch in batches]
    assert [first for what, first in task.told if what == "load"] == order
    assert [first for what, first in task.told if what == "losses"] == order
    assert task.told.index(("losses", order[0])) == 1 + ahead


def test_indices_are_asked_for_once_an_epoch_and_training_ends_there(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(loop, "raise_index_faults", asked.append)
    task, train, run = start(tmp_path)
    fit(task, train, run)
    assert asked == [torch.device("cpu")] * 5


def test_mixed_precision_trains_float32_weights(tmp_path):
    task, train, run = start(tmp_path, precision="bf16-mixed")
    seen = set()
    task.model[0].register_forward_hook(lambda _module, _inputs, output: seen.add((task.model.training, output.dtype)))
    result = fit(task, train, run)
    assert seen == {(True, torch.bfloat16), (False, torch.float32)}  # scores are those of the weights as they are
    assert all(value.dtype != torch.bfloat16 for value in task.model.state_dict().values())
    assert result.val_best < 3


def test_random_numbers_of_a_gpu_are_left_out_where_none_trains():
    cpu = torch.device("cpu")
    state = fit_state.rng_state(cpu)
    assert "cuda" not in state
    expected = torch.rand(3)
    fit_state.set_rng_state({**state, "cuda": torch.zeros(16, dtype=torch.uint8)}, cpu)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("fit", "epochs"), -1),
        (("fit", "wall_s"), "long"),
        (("fit", "batches"), True),
        (("fit", "surprise"), 1),
        (("best", "0.weight"), torch.zeros(8, 5)),
        (("best", "other"), torch.zeros(())),
        (("sums", "loss"), torch.zeros(2)),
        (("optimizer", "state", "0", "exp_avg"), torch.zeros(3)),
        (("optimizer", "state", "0", "exp_avg"), None),
        (("optimizer", "param_groups"), []),
        (("optimizer", "param_groups"), [{"lr": "fast"}]),
        (("rng", "numpy", "rest"), []),
        (("rng", "python", "words"), torch.zeros(3, dtype=torch.int64)),
        (("settings",), None),
        (("weights",), {}),
    ],
    ids=str,
)
def test_a_sealed_checkpoint_of_another_form_is_refused(tmp_path, place, value):
    task, train, run = start(tmp_path, stop_at=6)
    with pytest.raises(Interrupted):
        fit(task, train, run)
    path = run.checkpoint_path("toy")
    content = checkpoint.join(*checkpoint.load(path))
    inner = content
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    checkpoint.save(path, *checkpoint.split(content))
    checkpoint.previous(path).unlink(missing_ok=True)
    task, train, run = start(tmp_path)
    with pytest.raises(CheckpointError, match=r"does not fit this model|expected a checkpoint of a training run"):
        fit(task, train, run)


def test_an_optimizer_s_state_takes_the_order_of_its_parameters_in_memory():
    """A fused optimizer walks through parameter and state side by side, whatever their strides."""

    def optimizer_of(start):
        weight = torch.nn.Parameter(start.clone())
        assert weight.stride() == (1, 3)
        return weight, torch.optim.Adam([weight], lr=0.1, fused=True)

    def step(weight, optimizer):
        optimizer.zero_grad()
        (weight * torch.arange(15.0).view(3, 5)).square().sum().backward()
        optimizer.step()

    weight, optimizer = optimizer_of(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).T)
    for _ in range(3):
        step(weight, optimizer)
    state = fit_state.optimizer_state(optimizer)
    saved = {name: value.contiguous().clone() for name, value in state["state"]["0"].items()}  # as a file holds it
    resumed, other = optimizer_of(weight.detach())
    fit_state.set_optimizer_state(other, state | {"state": {"0": saved}})
    for each in ((weight, optimizer), (resumed, other)):
        step(*each)
    assert torch.equal(weight, resumed)
