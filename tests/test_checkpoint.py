"""Files appear whole or not at all, and a checkpoint reads back as it was saved."""

import os
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import save_file

from gmoe_ext import checkpoint
from gmoe_ext.atomic_write import atomic_write, refuse_input
from gmoe_ext.checkpoint import CheckpointError
from gmoe_ext.errors import ConfigError


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
