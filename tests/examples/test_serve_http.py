"""The HTTP example gives the student's answers to real requests, one at a time and many at once."""

from __future__ import annotations

import asyncio
import http.client
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from gmoe_ext import models
from gmoe_ext.export import pack
from gmoe_ext.runtime import PackedStudent

for package in ("fastapi", "uvicorn"):
    pytest.importorskip(package, reason=f"needs '{package}' (extra 'serve')")

PROGRAM = Path(__file__).resolve().parents[2] / "examples" / "serve_http.py"
NODES = 20


@dataclass
class Service:
    """A running server and the student it serves."""

    student: PackedStudent
    port: int

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            text = None if body is None else body if isinstance(body, str) else json.dumps(body)
            connection.request(method, path, text, {"content-type": "application/json"})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    torch.manual_seed(0)
    model = models.build("rbm", in_dim=12, hidden_dim=16, out_dim=4, num_layers=2, num_experts=3, k=2).eval()
    path = tmp_path_factory.mktemp("http") / "student.safetensors"
    pack(model, path, class_names=list("abcd"), positions=torch.randn(NODES, 4))
    # Serving must not need torch: the program runs where it cannot be imported.
    code = f"import sys, runpy; sys.modules['torch'] = None; sys.argv = [{str(PROGRAM)!r}, '--student', sys.argv[1], "
    code += f"'--port', '0']; runpy.run_path({str(PROGRAM)!r}, run_name='__main__')"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    server = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], env=environment, stderr=subprocess.PIPE, text=True
    )
    assert server.stderr is not None
    log: list[str] = []
    for line in server.stderr:
        log.append(line)
        if found := re.search(r"running on http://127\.0\.0\.1:(\d+)", line):
            break
    else:
        pytest.fail("the server did not start:\n" + "".join(log))
    threading.Thread(target=server.stderr.read, daemon=True).start()  # a full pipe would stop it
    yield Service(PackedStudent.load(path), int(found[1]))
    server.send_signal(signal.SIGTERM)
    assert server.wait(timeout=20) in (0, -signal.SIGTERM)


def question(seed: int) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    rows = int(random.integers(1, 6))
    x, nodes = random.standard_normal((rows, 8), np.float32), random.integers(-1, NODES, rows)
    return {"x": x.tolist(), "nodes": nodes.tolist(), "top": 2}, x, nodes


def assert_answered(service: Service, seed: int) -> None:
    body, x, nodes = question(seed)
    status, answer = service.ask("POST", "/predict", body)
    assert status == 200, answer
    proba, classes = service.student.top_classes(x, 2, nodes)
    assert answer["class"] == classes.tolist() and answer["probability"] == proba.tolist()
    assert answer["name"] == [["abcd"[i] for i in row] for row in classes]


def test_sixteen_callers_each_get_their_own_answer(service: Service) -> None:
    assert_answered(service, 0)
    before = service.ask("GET", "/info")[1]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda seed: assert_answered(service, seed), range(1, 161)))
    status, after = service.ask("GET", "/info")
    assert status == 200 and after["student"]["model"] == "rbm"
    assert after["requests"] - before["requests"] == 160 >= after["batches"] - before["batches"]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"x": []}, "expected 1 to 4096 rows"),
        ({"x": [[1.0] * 7]}, "expected rows of 8 features"),
        ({"x": [[1.0] * 8, [1.0] * 9]}, "expected rows of 8 features"),
        ({"x": [[1.0] * 8], "nodes": [NODES]}, r"expected 'nodes' in \[-1, 20\)"),
        ({"x": [[1.0] * 8], "nodes": [1, 2]}, "expected 1 'nodes'"),
        ({"x": [[1.0] * 8], "top": 5}, r"expected 'top' in \[1, 4\], got 5"),
        ({"x": [[1.0] * 8, [1e39] * 8]}, "row 1 of 'x' holds a value that is not finite"),
        ('{"x": [[NaN,1,1,1,1,1,1,1]]}', "row 0 of 'x' holds a value that is not finite"),
        ({"x": [["a"] * 8]}, "valid number"),
        ({"x": [["1"] * 8], "nodes": [1]}, "valid number"),
        ({"x": [[1.0] * 8]}, r"send 'nodes', one per row, in \[0, 20\), or -1 for a node"),
        ({"x": [[1.0] * 8], "nodes": None}, "send 'nodes', one per row"),
        ({"x": [[1.0] * 8], "node": [1]}, "Extra inputs are not permitted"),
        ({"x": [[1.0] * 8], "nodes": [1.0]}, "valid integer"),
        ({"x": [[1.0] * 8], "nodes": ["1"]}, "valid integer"),
        ({"x": [[1.0] * 8], "nodes": [1 << 64]}, r"expected 'nodes' in \[-1, 20\)"),
        ('{"x": [[1,1,1,1,1,1,1,1]], "nodes": [NaN]}', "valid integer"),
        ('{"x": [[1,1,1,1,1,1,1,1]], "nodes": [1], "top": Infinity}', "valid integer"),
        ('{"x": NaN, "nodes": [1]}', "valid list"),
        ("NaN", "valid dictionary"),
        ("-Infinity", "valid dictionary"),
        ("{", "JSON decode error"),
    ],
)
def test_a_bad_question_is_refused_with_the_reason(service: Service, body: Any, text: str) -> None:
    status, answer = service.ask("POST", "/predict", body)
    assert status == 422 and re.search(text, json.dumps(answer))
    assert_answered(service, 7)


@pytest.mark.parametrize("body", ["[" * 100_000, '{"x": [[' + "1" * 5000 + "]]}", "\x00", '{"x":1e999}'])
def test_a_body_that_cannot_be_read_is_the_callers_mistake(service: Service, body: str) -> None:
    status, _ = service.ask("POST", "/predict", body)
    assert 400 <= status < 500
    assert_answered(service, 8)


@pytest.fixture
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("serve_http", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["serve_http"] = module  # pydantic looks up annotations there
    spec.loader.exec_module(module)
    return module


def test_requests_that_wait_together_are_one_batch(example: ModuleType) -> None:
    sizes, go = [], threading.Event()

    def predict(x: np.ndarray, nodes: np.ndarray | None) -> np.ndarray:
        sizes.append(len(x))
        assert go.wait(timeout=30)
        return 2 * x

    async def scenario() -> list[np.ndarray]:
        batcher = example.Batcher(predict)
        worker = asyncio.create_task(batcher.run())
        first = asyncio.create_task(batcher.ask(np.full((3, 1), 0.0), None))
        while not sizes:  # the first is being answered
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(batcher.ask(np.full((2, 1), float(i)), None)) for i in range(1, 6)]
        await asyncio.sleep(0)
        go.set()
        answers = await asyncio.gather(first, *others)
        worker.cancel()
        return answers

    answers = asyncio.run(scenario())
    assert sizes == [3, 10]
    assert [float(answer[0, 0]) for answer in answers] == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]


def test_a_failing_batch_fails_only_its_own_callers(example: ModuleType) -> None:
    def predict(x: np.ndarray, nodes: np.ndarray | None) -> np.ndarray:
        if x[0, 0] < 0:
            raise ValueError("negative")
        return x

    async def scenario() -> np.ndarray:
        batcher = example.Batcher(predict)
        worker = asyncio.create_task(batcher.run())
        with pytest.raises(ValueError, match="negative"):
            await batcher.ask(np.full((1, 1), -1.0), None)
        answer = await batcher.ask(np.ones((1, 1)), None)
        with pytest.raises(example.Overloaded):
            await batcher.ask(np.empty((example.MOST_WAITING + 1, 1)), None)
        worker.cancel()
        return answer

    assert asyncio.run(scenario()).tolist() == [[1.0]]


def test_a_batch_has_a_maximum_number_of_rows(example: ModuleType) -> None:
    async def scenario() -> list[int]:
        batcher = example.Batcher(lambda x, nodes: x)
        asks = [asyncio.create_task(batcher.ask(np.empty((3000, 1)), None)) for _ in range(3)]
        await asyncio.sleep(0)
        taken = [len(batcher.take()) for _ in range(3)]
        for ask in asks:
            ask.cancel()
        assert not batcher.wake.is_set() and batcher.waiting_rows == 0
        return taken

    assert asyncio.run(scenario()) == [1, 1, 1]
