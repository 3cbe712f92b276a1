"""Where a run computes, and what the environment says about itself."""

import platform
import subprocess
import sys

import pytest
import torch

import gmoe_ext
from gmoe_ext import _native, collect_env
from gmoe_ext.errors import ConfigError
from gmoe_ext.train.device import describe_backend, resolve


def test_devices_by_name():
    assert resolve("cpu") == torch.device("cpu")
    built = gmoe_ext.backend() == "reference" or gmoe_ext.build_info()["cuda"]
    assert resolve("auto").type == ("cuda" if torch.cuda.is_available() and built else "cpu")


@pytest.mark.native
def test_a_gpu_without_operators_for_it_is_refused_and_never_chosen(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(_native, "why_no_cuda", lambda: "the kernels do not load\n  fix: rebuild")
    assert resolve("auto").type == "cpu"
    with pytest.raises(ConfigError, match=r"cuda:0: the kernels do not load\n  fix: rebuild\n  or pass --device cpu"):
        resolve("cuda:0")
    monkeypatch.setattr(_native, "why_no_cuda", lambda: None)
    assert resolve("auto") == resolve("cuda") == torch.device("cuda", 1)


@pytest.mark.parametrize("name", ["tpu", "meta", f"cuda:{torch.cuda.device_count()}", ""])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(ConfigError, match="--device"):
        resolve(name)


def test_the_backend_tells_its_threads():
    assert "1 thread)" in describe_backend()


FREED = """
import resource, torch
from gmoe_ext.train.device import keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 1e6

def left():  # MB that stay with the process when a buffer of 64 MB has gone
    before = resident()
    torch.ones(1 << 24)
    return resident() - before

print(left())
keep_freed_memory()
print(left())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is kept by a setting of glibc")
def test_freed_memory_stays_with_the_process():
    told = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True, timeout=120)
    returned, kept = map(float, told.stdout.split())
    assert returned < 20 and kept > 50


def test_the_environment_is_told(capsys):
    assert collect_env.main() == 0
    told = capsys.readouterr().out
    assert all(name in told for name in ("gmoe_ext", "backend", "python", "torch", "numpy", "[distill]"))


def test_the_command_shows_help_and_settings_without_training():
    command = [sys.executable, "-m", "gmoe_ext.train"]
    shown = subprocess.run([*command, "--print_config"], capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0 and "name: synthetic" in shown.stdout
    helped = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=120)
    assert helped.returncode == 0 and "--train.epochs" in helped.stdout


def test_importing_the_command_changes_nothing_outside():
    code = (
        "import os; before = dict(os.environ); import gmoe_ext.train.__main__ as m; assert dict(os.environ) == before"
    )
    code += "; import sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
