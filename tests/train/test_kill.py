"""A run killed at any step and continued ends with the weights of one that was not, bit for bit."""

import os
import random
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from .files import write_molecules

EPOCHS, BATCHES = 5, 8
# Sends itself a signal when a step is done, before anything is written about it.
DRIVER = """
import os, sys
from gmoe_ext.train import run, __main__
kill_at, number = int(sys.argv[1]), int(sys.argv[2])
step_done = run.Run.step_done
def hit(self, task, train, state):
    if state.steps == kill_at:
        os.kill(os.getpid(), number)
    step_done(self, task, train, state)
run.Run.step_done = hit
sys.exit(__main__.main(sys.argv[3:]))
"""


def start(root, run_dir, kill_at=-1, number=signal.SIGKILL, checkpoint_s=0.0):
    flags = ["--data.root", str(root), "--data.name", "tinymol", "--model.name", "gmoe-gcn", "--model.hidden_dim", "8"]
    flags += ["--model.num_experts", "4", "--model.num_hop1", "2", "--model.k", "2", "--device", "cpu"]
    flags += ["--train.epochs", str(EPOCHS), "--train.batch_size", "4", "--train.checkpoint_s", str(checkpoint_s)]
    flags += ["--run_dir", str(run_dir), "--resume", "auto"]
    command = [sys.executable, "-c", DRIVER, str(kill_at), str(int(number)), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def final(run_dir):
    return load_file(run_dir / "checkpoints" / "gmoe-gcn.safetensors")


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    differing = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert differing == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    write_molecules(root)
    done = start(root, root / "run")
    assert done.returncode == 0, done.stderr
    return root


def test_sigkill_at_three_random_steps_changes_no_bit(whole, tmp_path):
    seed = random.randrange(10**6)
    for step in sorted(random.Random(seed).sample(range(2, EPOCHS * BATCHES), 3)):
        killed = start(whole, tmp_path, step)
        assert killed.returncode == -signal.SIGKILL, f"seed {seed}, step {step}: {killed.stderr}"
    assert start(whole, tmp_path).returncode == 0
    assert_same(final(tmp_path), final(whole / "run"))
    records = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(records) == EPOCHS


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_leaves_a_checkpoint_and_goes_on(whole, tmp_path, number, code):
    stopped = start(whole, tmp_path, 11, number, checkpoint_s=1000.0)
    assert stopped.returncode == code, stopped.stderr
    assert "--resume auto" in stopped.stdout
    rest = start(whole, tmp_path, checkpoint_s=1000.0)
    assert "continues after step 11 (epoch 1, batch 3)" in rest.stdout
    assert_same(final(tmp_path), final(whole / "run"))
