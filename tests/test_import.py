"""Importing gmoe_ext is quick, lazy and without side effects; a missing compiled library is replaced with a warning."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_IMPORT_S = 0.4  # beyond torch's own import
OPTIONAL = {"gensim", "sklearn", "scipy", "matplotlib", "ogb", "rdkit", "ray", "optuna", "onnx", "pandas"}
PACKAGES = ("ops", "graph", "nn", "models", "data", "distill", "export", "train", "runtime")


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GMOE_EXT_")}
    environment.update({"PYTHONPATH": str(ROOT), **env})
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def answer(code: str, **env: str) -> Any:
    """Return the last line of code's output, parsed as JSON."""
    done = python(code, **env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_bare_import_loads_no_torch() -> None:
    loaded = answer("import gmoe_ext, json, sys; dir(gmoe_ext); print(json.dumps(sorted(sys.modules)))")
    assert "torch" not in loaded and "numpy" not in loaded


def test_runtime_imports_no_torch() -> None:
    loaded = answer("import gmoe_ext.runtime, json, sys; print(json.dumps(sorted(sys.modules)))")
    assert not [name for name in loaded if name.split(".")[0] == "torch"]
    packages = {name.split(".")[1] for name in loaded if name.startswith("gmoe_ext.")}
    assert packages <= {"runtime", "errors", "_runtime"}


@pytest.mark.parametrize("package", PACKAGES)
def test_optional_libraries_wait_until_needed(package: str) -> None:
    loaded = set(answer(f"import gmoe_ext.{package}, json, sys; print(json.dumps(sorted(sys.modules)))"))
    assert not loaded & OPTIONAL, f"importing gmoe_ext.{package} loads {loaded & OPTIONAL}"


def test_import_is_quick() -> None:
    code = (
        "import time, torch, json, numpy\n"
        "start = time.process_time()\n"
        "import gmoe_ext\n"
        "gmoe_ext.Graph, gmoe_ext.ops, gmoe_ext.nn, gmoe_ext.models, gmoe_ext.data, gmoe_ext.runtime\n"
        "print(json.dumps(time.process_time() - start))"
    )
    seconds = min(answer(code) for _ in range(3))  # of this process: the machine may be busy
    assert seconds < MAX_IMPORT_S


EFFECTS = """
import json, os, random, socket, sys, threading, warnings
import numpy, torch
def refuse(*args, **kwargs):
    raise AssertionError("network use at import")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
def state():
    return [dict(os.environ), random.getstate(), torch.get_rng_state().tolist(), torch.get_num_threads(),
            str(torch.get_default_dtype()), numpy.random.get_state()[1].tolist(), warnings.filters[:],
            os.getcwd(), sys.path[:], torch.are_deterministic_algorithms_enabled(), threading.active_count(),
            torch.cuda.is_initialized()]
before = state()
warnings.simplefilter("default")
before[6] = warnings.filters[:]
import importlib
for package in PACKAGES:
    importlib.import_module("gmoe_ext." + package)
after = state()
assert [a == b for a, b in zip(before, after)] == [True] * len(before), [a == b for a, b in zip(before, after)]
"""


def test_import_changes_nothing_and_says_nothing(tmp_path: Path) -> None:
    done = python(
        f"import os; os.chdir({str(tmp_path)!r})\nPACKAGES = {PACKAGES!r}\n{EFFECTS}", GMOE_EXT_BACKEND="reference"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and done.stderr == ""
    assert not list(tmp_path.iterdir())


def test_unknown_name_is_an_attribute_error() -> None:
    import gmoe_ext

    with pytest.raises(AttributeError, match="no attribute 'nothing_of_that_name'"):
        _ = gmoe_ext.nothing_of_that_name
    assert {"Graph", "ops", "backend", "build_info"} <= set(dir(gmoe_ext))
    for name in gmoe_ext.__all__:
        assert getattr(gmoe_ext, name) is not None


HIDE = """
import importlib.util, warnings
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "gmoe_ext._C" else real(name, package)
"""


def test_reference_can_be_chosen_without_a_warning() -> None:
    done = python(
        "import warnings; warnings.simplefilter('error')\nimport gmoe_ext; print(gmoe_ext.backend())",
        GMOE_EXT_BACKEND="reference",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "reference\n", "")


def test_missing_library_warns_once_and_falls_back() -> None:
    code = HIDE + (
        "import torch, gmoe_ext\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    for _ in range(3):\n"
        "        gate, index = gmoe_ext.ops.cosine_topk(torch.ones(1, 4), torch.eye(4), 2)\n"
        "    assert gmoe_ext.backend() == 'reference' and index.tolist() == [[0, 1]]\n"
        "    (warning,) = [w for w in seen if w.category is RuntimeWarning]\n"
        "    assert 'not built' in str(warning.message) and 'fix:' in str(warning.message), warning.message\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
