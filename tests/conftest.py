"""Shared fixtures: a fixed number of threads, fixed seeds, devices, real data, and no silent run on the fallback."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch

import gmoe_ext

from .placement import MadeOn

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--threads", type=int, default=1, help="threads of torch that every test starts with")


def _use_library(path: str) -> None:
    """Take the compiled operators from a file: those of the emulated device, see docs/developing/cuda.md."""
    spec = spec_from_file_location("gmoe_ext._C", path)
    assert spec is not None and spec.loader is not None
    sys.modules["gmoe_ext._C"] = library = module_from_spec(spec)
    spec.loader.exec_module(library)


def _load_profile() -> None:
    """Choose how many examples a property is tried on: GMOE_EXT_PROPERTIES (ci, nightly), times GMOE_EXT_FACTOR."""
    if find_spec("hypothesis") is None:  # as on a machine lent for its GPU, where no property is tested
        return
    from hypothesis import HealthCheck, settings

    name, factor = os.environ.get("GMOE_EXT_PROPERTIES", "ci"), float(os.environ.get("GMOE_EXT_FACTOR", "1"))
    examples = max(1, int({"ci": 200, "nightly": 20_000}[name] * factor))
    # The first call of an operator loads libraries, which no deadline per example allows for.
    common: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
    settings.register_profile(
        name, max_examples=examples, derandomize=name == "ci", database=None, print_blob=True, **common
    )
    settings.load_profile(name)


def pytest_configure(config: pytest.Config) -> None:
    _load_profile()
    if os.environ.get("GMOE_EXT_TEST_LIBRARY"):
        _use_library(os.environ["GMOE_EXT_TEST_LIBRARY"])
    config.addinivalue_line("markers", "slow: takes more than ten seconds; deselect with -m 'not slow'")
    config.addinivalue_line("markers", "native: tests the compiled library and is skipped on the reference fallback")


def pytest_report_header() -> str:
    data = os.environ.get("GMOE_EXT_DATA", "not set: tests on real data are skipped")
    return f"gmoe_ext: backend {gmoe_ext.backend()}, torch {torch.__version__}, GMOE_EXT_DATA {data}"


def pytest_sessionstart(session: pytest.Session) -> None:
    # Where the compiled library is demanded, a green run on the fallback would prove nothing.
    if os.environ.get("GMOE_EXT_REQUIRE_NATIVE", "0") not in ("", "0") and not is_native():
        pytest.exit("GMOE_EXT_REQUIRE_NATIVE is set but gmoe_ext runs on the reference: build it first", returncode=4)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The C++ suites take longest: they go first, so that a second worker does the rest meanwhile.
    items.sort(key=lambda item: item.path.name != "test_cpp.py")
    if is_native():
        return
    skip = pytest.mark.skip(reason="needs the compiled library, and gmoe_ext runs on the reference fallback")
    for item in items:
        if item.get_closest_marker("native"):
            item.add_marker(skip)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Count the examples of a property."""
    handle = getattr(getattr(item, "obj", None), "hypothesis", None)
    if handle is None:
        return (yield)
    test, counted = handle.inner_test, [0]

    @functools.wraps(test)
    def counting(*args: object, **kwargs: object) -> None:
        test(*args, **kwargs)
        counted[0] += 1

    handle.inner_test = counting
    try:
        return (yield)
    finally:
        handle.inner_test = test
        item.user_properties.append(("examples", counted[0]))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    passed = [dict(report.user_properties) for report in terminalreporter.stats.get("passed", ())]
    examples = [kept["examples"] for kept in passed if "examples" in kept]
    if examples:
        terminalreporter.write_line(f"{sum(examples):,} examples of {len(examples)} properties")
    values = [kept["values"] for kept in passed if "values" in kept]
    if values:
        terminalreporter.write_line(f"{sum(values):,} values of settings")


def is_native() -> bool:
    return gmoe_ext.backend() != "reference"


@pytest.fixture(autouse=True)
def fixed_start(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test starts with one thread (or --threads) and the same seed, and leaves both as it found them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(request.config.getoption("--threads"))
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def _devices() -> list[str]:
    with_cuda = torch.cuda.is_available() and gmoe_ext.build_info().get("cuda", False)
    return ["cpu", "cuda"] if with_cuda else ["cpu"]


@pytest.fixture(params=_devices())
def device(request: pytest.FixtureRequest) -> torch.device:
    """cpu, and cuda where the machine and the build have it."""
    return torch.device(request.param)


@pytest.fixture
def made_on_device(device: torch.device) -> Iterator[torch.device]:
    """What a test makes without naming a device is made on this one, of the numbers it has on the CPU."""
    if device.type == "cpu":
        yield device
        return
    with MadeOn(device):
        yield device


@pytest.fixture
def gpu(device: torch.device) -> torch.device:
    """The CUDA device; skips where there is none, and the CPU's turn where there is one."""
    if device.type != "cuda":
        pytest.skip("of a GPU alone")
    return device


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Directory with the real data sets, named by GMOE_EXT_DATA."""
    root = os.environ.get("GMOE_EXT_DATA")
    if not root:
        pytest.skip("set GMOE_EXT_DATA to the directory with the data sets to run this test")
    path = Path(root)
    assert path.is_dir(), f"GMOE_EXT_DATA={root} is not a directory"
    return path


@pytest.fixture(scope="session")
def distilled_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of a short distillation: GraphSAGE into RbM, 60 nodes of 8 features. Copy it to change it."""
    pytest.importorskip("gensim")
    from gmoe_ext.train.__main__ import main as train

    from .train.files import write_nodes

    root = tmp_path_factory.mktemp("distilled")
    write_nodes(root / "data")
    flags = (
        *("--device", "cpu", "--data.name", "tiny", "--data.row_normalize", "true", "--train.epochs", "4"),
        *("--teacher.model", "sage", "--teacher.hidden_dim", "8"),
        *("--student.model", "rbm", "--student.hidden_dim", "8", "--student.num_experts", "3", "--student.k", "2"),
        *("--student.norm", "batch", "--distill.pretrain_epochs", "2", "--distill.walk_epochs", "1"),
        *("--distill.walk_length", "5", "--distill.position_dim", "4", "--distill.noise_draws", "1"),
    )
    assert train(["--data.root", str(root / "data"), "--run_dir", str(root / "run"), *flags]) == 0
    return root / "run"


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the source tree under test."""
    return REPOSITORY
