"""The wheel holds what it must and works away from the source tree; the source archive can build it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from gmoe_ext import models
from gmoe_ext.export import pack
from gmoe_ext.runtime import PackedStudent

ROOT = Path(__file__).resolve().parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

pytestmark = [pytest.mark.slow, pytest.mark.native]


def run(*command: str, cwd: Path, **env: str) -> str:
    # The same instruction set as here: answers are compared bit by bit.
    kept = [key for key in os.environ if key == "GMOE_EXT_CPU" or not key.startswith("GMOE_EXT_")]
    environment = {key: os.environ[key] for key in kept}
    done = subprocess.run(
        command, cwd=cwd, env={**environment, **env}, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this tree; the compiler's cache under build/ makes it cheap after an editable install."""
    for stale in (ROOT / "build").glob("lib*"):  # setuptools would pack modules that no longer exist
        shutil.rmtree(stale)
    out = tmp_path_factory.mktemp("wheel")
    flags = ("--no-build-isolation", "--no-deps", "--disable-pip-version-check", "--quiet")
    run(sys.executable, "-m", "pip", "wheel", *flags, "-w", str(out), ".", cwd=ROOT)
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the wheel installed and nothing else."""
    target = tmp_path_factory.mktemp("site")
    flags = ("--no-deps", "--no-index", "--disable-pip-version-check", "--quiet")
    run(sys.executable, "-m", "pip", "install", *flags, "--target", str(target), str(wheel), cwd=target)
    return target


@pytest.fixture(scope="module")
def serving_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a virtual environment that has NumPy and the wheel, nothing else."""
    root = tmp_path_factory.mktemp("serving")
    venv.create(root, symlinks=True)
    python = root / "bin" / "python"
    asked = run(str(python), "-I", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=root)
    packages = Path(asked.strip())
    numpy = importlib.metadata.distribution("numpy")
    # The NumPy of this environment, so that the test needs no network.
    for name in {file.parts[0] for file in numpy.files or () if not file.parts[0].startswith((".", "__"))}:
        (packages / name).symlink_to(Path(str(numpy.locate_file(name))))
    pip = (sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check")
    # Its dependencies are those of training. A source tree on PYTHONPATH would pass for an installed package.
    run(*pip, "--no-deps", "--no-index", str(wheel), cwd=root, PYTHONPATH="")
    return python


@pytest.fixture(scope="module")
def student_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = models.build("rbm", in_dim=24, hidden_dim=40, out_dim=3, num_layers=2, num_experts=4, k=2).eval()
    return pack(model, tmp_path_factory.mktemp("student") / "student.safetensors", class_names=["a", "b", "c"])


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"gmoe_ext", f"gmoe_ext-{VERSION}.dist-info"}
    listed = subprocess.run(["git", "ls-files", "gmoe_ext"], cwd=ROOT, capture_output=True, text=True, check=False)
    missing = set(listed.stdout.split()) - set(names)
    assert not missing, f"not in the wheel: {sorted(missing)}"
    modules = {Path(name).name.split(".")[0] for name in names if name.endswith(".so")}
    assert modules == {"_C", "_runtime", "libgmoe_runtime"}
    assert "gmoe_ext/include/gmoe_runtime.h" in names


def test_installed_wheel_works_away_from_the_tree(site: Path, tmp_path: Path) -> None:
    code = f"""
import gmoe_ext, torch
assert gmoe_ext.__file__.startswith({str(site)!r}), gmoe_ext.__file__
assert gmoe_ext.backend() == "native" and gmoe_ext.__version__ == {VERSION!r}
assert gmoe_ext.build_info()["version"] == {VERSION!r}
x = torch.randn(5, 7, requires_grad=True)
gate, index = gmoe_ext.ops.cosine_topk(x, torch.randn(3, 7), k=2)
(gate * torch.randn(5, 2)).sum().backward()
assert x.grad.abs().sum() > 0
graph = gmoe_ext.Graph.from_edge_index(torch.tensor([[0, 1], [1, 0]]), 5)
model = gmoe_ext.models.build("gmoe-gcn", in_dim=7, hidden_dim=8, out_dim=3, num_layers=2, num_experts=4, k=2)
assert model(x, graph).logits.shape == (5, 3)
"""
    run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(site), GMOE_EXT_REQUIRE_NATIVE="1")
    run(sys.executable, "-m", "gmoe_ext.train", "--print_config", cwd=tmp_path, PYTHONPATH=str(site))
    code = "import sys, gmoe_ext.runtime; assert 'torch' not in sys.modules; gmoe_ext.runtime.PackedStudent.load"
    run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(site))
    flags = run(sys.executable, "-m", "gmoe_ext.runtime", "--cflags", "--libs", cwd=tmp_path, PYTHONPATH=str(site))
    assert flags.startswith(f"-I{site}/gmoe_ext/include ")


def test_a_student_answers_where_numpy_and_the_wheel_are_all_there_is(
    serving_python: Path, student_file: Path, tmp_path: Path
) -> None:
    x = np.random.default_rng(0).standard_normal((300, 24), np.float32)
    np.save(tmp_path / "x.npy", x)
    code = """
import importlib.util, sys
for package in ("torch", "safetensors", "yaml", "rich", "jsonargparse", "scipy"):
    assert importlib.util.find_spec(package) is None, package
import numpy as np
from gmoe_ext.runtime import PackedStudent, StudentClassifier
student, x = PackedStudent.load(sys.argv[1]), np.load("x.npy")
np.savez("y.npz", logits=student.predict(x), proba=student.predict_proba(x), top=student.top_classes(x, 2)[1],
         expert=student.route(x)[1], name=StudentClassifier(sys.argv[1]).predict(x))
"""
    run(str(serving_python), "-I", "-c", code, str(student_file), cwd=tmp_path)
    student, y = PackedStudent.load(student_file), np.load(tmp_path / "y.npz")
    assert np.array_equal(y["logits"], student.predict(x)) and np.array_equal(y["proba"], student.predict_proba(x))
    assert np.array_equal(y["top"], student.top_classes(x, 2)[1]) and np.array_equal(y["expert"], student.route(x)[1])
    assert np.array_equal(y["name"], np.array(["a", "b", "c"])[y["logits"].argmax(1)])

    files = ("--input", "x.npy", "--output", "answers.csv")
    run(str(serving_python), "-I", "-m", "gmoe_ext.predict", "--student", str(student_file), *files, cwd=tmp_path)
    answers = [line.split(",") for line in (tmp_path / "answers.csv").read_text().splitlines()[1:]]
    assert [int(answer[1]) for answer in answers] == y["logits"].argmax(1).tolist()
    described = run(
        *(str(serving_python), "-I", "-m", "gmoe_ext.runtime", "--student", str(student_file)), cwd=tmp_path
    )
    assert '"model": "rbm"' in described


def test_serving_starts_at_once_and_is_small(serving_python: Path, wheel: Path, tmp_path: Path) -> None:
    code = (
        # The processor's time, which a busy machine hardly stretches; NumPy, which users have loaded, takes most.
        "import numpy\nfrom time import process_time as now\nstart = now()\nimport gmoe_ext.runtime\n"
        "print(now() - start, gmoe_ext.__file__)"
    )
    runs = [run(str(serving_python), "-I", "-c", code, cwd=tmp_path).split() for _ in range(5)]
    assert all(Path(file).is_relative_to(serving_python.parents[1]) for _, file in runs)
    seconds = [float(took) for took, _ in runs]
    assert min(seconds) < 0.08, f"import gmoe_ext.runtime took {seconds} s"
    sizes = {entry.filename: entry.file_size for entry in zipfile.ZipFile(wheel).infolist()}
    (extension,) = (size for name, size in sizes.items() if name.startswith("gmoe_ext/_runtime."))
    assert extension < 3_000_000 and sizes["gmoe_ext/libgmoe_runtime.so"] < 3_000_000


def test_libraries_name_no_build_path(site: Path) -> None:
    for library in site.glob("gmoe_ext/*.so"):
        assert str(ROOT).encode() not in library.read_bytes(), f"{library.name} holds the path it was built at"


def test_source_archive_holds_what_the_build_needs(tmp_path: Path) -> None:
    code = "from setuptools.build_meta import build_sdist; import sys; print(build_sdist(sys.argv[1]))"
    name = run(sys.executable, "-c", code, str(tmp_path), cwd=ROOT).split()[-1]
    with tarfile.open(tmp_path / name) as archive:
        held = {member.partition("/")[2] for member in archive.getnames()}
    wanted = ["csrc", "gmoe_ext", "CMakeLists.txt", "setup.py", "pyproject.toml", "README.md", "LICENSE"]
    listed = subprocess.run(["git", "ls-files", *wanted], cwd=ROOT, capture_output=True, text=True, check=False)
    missing = set(listed.stdout.split()) - held
    assert not missing, f"not in the source archive: {sorted(missing)}"
