"""Files appear whole or not at all, and a checkpoint reads back as it was saved."""

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import save_file

from gmoe_ext import checkpoint
from gmoe_ext.atomic_write import atomic_write, refuse_input
from gmoe_ext.checkpoint import CheckpointError
from gmoe_ext.errors import ConfigError, WriteError

from .full_disk import no_file_beyond


def test_an_error_leaves_the_old_file_and_no_draft(tmp_path):
    target = tmp_path / "made" / "file"
    with atomic_write(target) as draft:
        draft.write_text("old")
    with pytest.raises(KeyError), atomic_write(target) as draft:
        draft.write_text("half")
        raise KeyError
    assert target.read_text() == "old"
    assert list(target.parent.iterdir()) == [target]


def test_a_directory_appears_whole(tmp_path):
    with atomic_write(tmp_path / "raw") as draft:
        draft.mkdir()
        (draft / "edge.csv").write_text("0,1")
        assert not (tmp_path / "raw").exists()
    assert (tmp_path / "raw" / "edge.csv").read_text() == "0,1"
    with pytest.raises(KeyError), atomic_write(tmp_path / "other") as draft:
        draft.mkdir()
        (draft / "edge.csv").write_text("0,1")
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_a_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        for write in (atomic_write(tmp_path / name), nullcontext(refuse_input)):
            with pytest.raises(ConfigError, match="got a device, a pipe or a socket"), write as refuse:
                refuse(tmp_path / name, "--output")
    assert (tmp_path / "pipe").is_fifo() and sorted(os.listdir(tmp_path)) == ["link", "pipe"]


@pytest.mark.parametrize("call", ["mkdir", "fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_no_more_is_named_with_what_to_do(tmp_path, monkeypatch, call, number):
    target = tmp_path / "made" / "file"
    if call != "mkdir":
        with atomic_write(target) as draft:
            draft.write_text("old")

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, refuse)
    reason = f"{re.escape(str(target))} cannot be written: {os.strerror(number)}\n  fix: make space"
    with pytest.raises(WriteError, match=reason), atomic_write(target) as draft:
        draft.write_text("new")
    monkeypatch.undo()
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["old"] * (call != "mkdir")


def test_what_is_too_long_for_the_disk_leaves_the_old_file(tmp_path):
    target = tmp_path / "file"
    for size in (10, 5000):
        with contextlib.suppress(WriteError), no_file_beyond(1000), atomic_write(target) as draft:
            draft.write_text("x" * size)
    assert target.stat().st_size == 10 and list(tmp_path.iterdir()) == [target]
    with (
        pytest.raises(
            CheckpointError, match=r"file cannot be written: .*File too large\n  fix: .*checkpoint before is kept"
        ),
        no_file_beyond(1000),
    ):
        checkpoint.save(target, {"weight": torch.ones(1000)}, {})
    assert target.stat().st_size == 10 and list(tmp_path.iterdir()) == [target]


def test_a_kill_in_the_middle_of_a_checkpoint_leaves_nothing_for_long(tmp_path):
    """The system kills a process that writes beyond a limit, if it does not ignore the signal."""
    code = "import resource, signal, sys, torch; from pathlib import Path; from gmoe_ext import checkpoint\n"
    code += "resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))\n"
    code += "checkpoint.save(Path(sys.argv[1]), {'weight': torch.ones(1000)}, {})"
    target = tmp_path / "phase.safetensors"
    killed = subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert killed.returncode == -signal.SIGXFSZ and len(list(tmp_path.iterdir())) == 1
    checkpoint.save(target, {"weight": torch.ones(1000)}, {})
    assert list(tmp_path.iterdir()) == [target]


def test_an_error_of_what_a_block_reads_stays_what_it_is(tmp_path):
    for error in (ConnectionResetError(104, "reset"), PermissionError(errno.EACCES, "Permission denied", "input.csv")):
        with pytest.raises(type(error)) as raised, atomic_write(tmp_path / "file"):
            raise error
        assert raised.value is error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("last", ["damaged", "missing"])
def test_the_checkpoint_before_takes_the_place_of_one_that_is_no_good(tmp_path, last):
    path = tmp_path / "phase.safetensors"
    for step in (1, 2):
        checkpoint.save(path, {}, {"step": step})
    path.write_bytes(b"") if last == "damaged" else path.unlink()
    _, scalars, note = checkpoint.load_good(path)
    assert scalars == {"step": 1}
    assert re.match(
        rf"checkpoint {re.escape(str(path))} is {last}.*; continues from the one before it, .*previous", note
    )


def test_a_checkpoint_reads_back_as_it_was_saved(tmp_path):
    path = tmp_path / "phase.safetensors"
    tensors = {"model/weight": torch.randn(4, 3).T, "model/steps": torch.tensor(7), "best/weight": torch.empty(0, 2)}
    scalars = {"phase": "phase", "fit": {"val_best": float("nan"), "epoch": 3}}
    checkpoint.save(path, tensors, scalars)
    loaded, read = checkpoint.load(path)
    assert loaded.keys() == tensors.keys() and all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert read["fit"]["epoch"] == 3 and read["phase"] == "phase"
    assert checkpoint.select("model", loaded).keys() == {"weight", "steps"}


def test_nested_state_is_split_and_joined(tmp_path):
    tree = {"fit": {"epoch": 3}, "best": {"a.weight": torch.ones(1)}, "adam": {"state": {"0": {"step": torch.ones(1)}}}}
    tree |= {"empty": {}, "alone": torch.zeros(1), "betas": [0.9, 0.99]}
    tensors, scalars = checkpoint.split(tree)
    assert tensors.keys() == {"best/a.weight", "adam/state/0/step", "alone"}
    checkpoint.save(tmp_path / "state.safetensors", tensors, scalars)
    assert checkpoint.join(*checkpoint.load(tmp_path / "state.safetensors")) == tree


@pytest.mark.parametrize("damage", ["cut", "flip", "foreign", "missing"])
def test_a_damaged_checkpoint_is_refused(tmp_path, damage):
    path = tmp_path / "phase.safetensors"
    checkpoint.save(path, {"weight": torch.ones(100)}, {})
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content[:-9] if damage == "cut" else content)
    if damage == "foreign":
        save_file({"weight": torch.ones(3)}, path)
    if damage == "missing":
        path.unlink()
    with pytest.raises(CheckpointError, match=r"phase\.safetensors"):
        checkpoint.load(path)


@pytest.mark.parametrize("scalars", ["", "[1]", "3", "{", "[" * 100_000])
def test_scalars_that_are_no_object_are_refused(tmp_path, scalars):
    header = {"format": checkpoint.FORMAT, "crc32": checkpoint._crc32({}, scalars), "scalars": scalars}
    save_file({}, tmp_path / "c", metadata=header)
    with pytest.raises(CheckpointError, match="scalars are no JSON"):
        checkpoint.load(tmp_path / "c")
