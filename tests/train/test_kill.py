"""A run killed or stopped at any moment and continued is the run that nobody disturbed, bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from gmoe_ext import checkpoint
from tests import kills

TASKS = ("nodes", "molecules", "rbm")


@pytest.fixture(scope="module")
def rounds(tmp_path_factory, repository):
    """The folder of a few rounds, and what the tool printed."""
    folder = tmp_path_factory.mktemp("kills")
    command = [sys.executable, "-m", "tests.kills", "--kills", "9", "--tasks", ",".join(TASKS), "--out", str(folder)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_kills_and_stops_change_no_bit(rounds):
    count = int(rounds[1].split()[0])
    assert count >= 9 and rounds[1].endswith(f"of {len(TASKS)} tasks, 0 differences\n")


@pytest.mark.parametrize("changed", ["weights", "epoch twice", "result", "file", "draft"])
def test_what_a_kill_might_change_is_found(rounds, tmp_path, changed):
    whole, run = rounds[0] / "nodes" / "run", tmp_path / "run"
    shutil.copytree(whole, run)
    assert kills.differences(whole, run) == []
    metrics, weights = run / "metrics.jsonl", run / "checkpoints" / "gcn.safetensors"
    if changed == "weights":
        tensors, scalars = checkpoint.load(weights)
        name = next(name for name in tensors if name.startswith("weights/"))
        tensors[name].flatten()[0] += 1e-6
        checkpoint.save(weights, tensors, scalars)
    elif changed == "epoch twice":
        metrics.write_text(metrics.read_text() + metrics.read_text().splitlines()[-1] + "\n")
    elif changed == "result":
        result = json.loads((run / "result.json").read_text())
        (run / "result.json").write_text(json.dumps(result | {"best_epoch": 99}))
    else:
        (run / {"file": "checkpoints/other.json", "draft": ".result.json.tmp"}[changed]).touch()
    assert kills.differences(whole, run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_stopped_says_how_to_go_on(rounds, tmp_path, number):
    flags = ["--data.root", str(rounds[0] / "data"), "--run_dir", str(tmp_path), "--device", "cpu"]
    flags += [*kills.TASKS["nodes"].split(), "--train.epochs", "1000000", "--train.checkpoint_s", "1000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "gmoe_ext.train", *flags],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 100
    while not (tmp_path / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + number, "")
    assert f"stopped    by {signal.Signals(number).name}" in out and "--resume auto" in out
    _, scalars = checkpoint.load(tmp_path / "checkpoints" / "gcn.safetensors")
    assert scalars["fit"]["epochs"] == len((tmp_path / "metrics.jsonl").read_text().splitlines()) > 0
