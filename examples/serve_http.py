"""Serve a packed student over HTTP with FastAPI and uvicorn (extra `serve`), without torch.

    python examples/serve_http.py --student student.safetensors --port 8000
    curl localhost:8000/predict -H 'content-type: application/json' -d '{"x": [[0.1, 0.2]], "nodes": [17], "top": 3}'

Requests that arrive while others are being answered wait and are then answered as one batch; a request that finds the
student idle is answered at once. Requests are checked before they join a batch, so a bad one cannot spoil others.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from gmoe_ext.runtime import PackedStudent

MOST_ROWS = 4096  # of a request, and of a batch of several requests
MOST_WAITING = 65536  # rows; further requests are refused rather than kept waiting

Proba = np.ndarray  # [rows, classes]


@dataclass
class Waiting:
    """A request waiting for its answer."""

    x: np.ndarray
    nodes: np.ndarray | None
    answer: asyncio.Future[Proba]


class Overloaded(Exception):
    """Too many rows are waiting."""


class Batcher:
    """Answers requests that wait at the same time in one call.

    Args:
        predict: (x [N, D], nodes [N] or None) -> probabilities [N, C]; called in a thread, one call at a time.
    """

    def __init__(self, predict: Callable[[np.ndarray, np.ndarray | None], Proba]) -> None:
        self.predict, self.waiting, self.waiting_rows = predict, list[Waiting](), 0
        self.requests = self.batches = 0
        self.wake = asyncio.Event()

    async def ask(self, x: np.ndarray, nodes: np.ndarray | None) -> Proba:
        """Return the probabilities of some rows, computed in one batch with other waiting requests."""
        if self.waiting_rows + len(x) > MOST_WAITING:
            raise Overloaded
        request = Waiting(x, nodes, asyncio.get_running_loop().create_future())
        self.waiting.append(request)
        self.waiting_rows += len(x)
        self.requests += 1
        self.wake.set()
        return await request.answer

    async def run(self) -> None:
        """Answer requests until cancelled."""
        while True:
            await self.wake.wait()
            batch = self.take()
            try:
                proba = await asyncio.to_thread(self.predict, *joined(batch))
            except Exception as error:  # goes to the callers; the next batch may succeed
                for request in batch:
                    if not request.answer.done():
                        request.answer.set_exception(error)
                continue
            self.batches += 1
            ends = np.cumsum([len(request.x) for request in batch])
            for request, rows in zip(batch, np.split(proba, ends[:-1]), strict=True):
                if not request.answer.done():  # the caller may have disconnected
                    request.answer.set_result(rows)

    def take(self) -> list[Waiting]:
        """Remove and return the requests of the next batch, in order of arrival."""
        rows = count = 0
        for request in self.waiting:
            if count > 0 and rows + len(request.x) > MOST_ROWS:
                break
            rows, count = rows + len(request.x), count + 1
        batch, self.waiting = self.waiting[:count], self.waiting[count:]
        self.waiting_rows -= rows
        if not self.waiting:
            self.wake.clear()
        return batch


def joined(batch: Sequence[Waiting]) -> tuple[np.ndarray, np.ndarray | None]:
    """Concatenate the rows and nodes of a batch; either all requests to a student have nodes or none has."""
    nodes = [request.nodes for request in batch if request.nodes is not None]
    return np.concatenate([request.x for request in batch]), np.concatenate(nodes) if nodes else None


class Question(BaseModel):
    """A request: rows of features, their rows in the position table (-1: not in it), and how many classes to return."""

    model_config = ConfigDict(extra="forbid", strict=True)  # a misspelt "nodes" is no request without nodes

    x: list[list[float]]
    nodes: list[int] | None = None
    top: int = 1


def checked(student: PackedStudent, question: Question) -> tuple[np.ndarray, np.ndarray | None]:
    """Convert a question to arrays that the student can answer.

    Raises:
        ValueError: the question does not fit the student.
    """
    features = student.info()["features"]
    table = features["position_nodes"]
    columns = features["columns"] + (0 if table else features["position_columns"])
    if not 1 <= len(question.x) <= MOST_ROWS:
        raise ValueError(f"expected 1 to {MOST_ROWS} rows in 'x', got {len(question.x)}")
    if any(len(row) != columns for row in question.x):
        raise ValueError(f"expected rows of {columns} features in 'x'")
    with np.errstate(over="ignore"):
        x = np.array(question.x, np.float32).reshape(len(question.x), columns)
    if not np.isfinite(x).all():
        raise ValueError(
            f"row {int(np.flatnonzero(~np.isfinite(x).all(1))[0])} of 'x' holds a value that is not finite"
        )
    if not 1 <= question.top <= student.num_outputs:
        raise ValueError(f"expected 'top' in [1, {student.num_outputs}], got {question.top}")
    if not table:
        if question.nodes is not None:
            raise ValueError("this student has no position table: omit 'nodes'")
        return x, None
    nodes = question.nodes
    if nodes is None:
        raise ValueError(
            f"this student needs positions: send 'nodes', one per row, in [0, {table}), or -1 for a node "
            "that is not in its table"
        )
    if len(nodes) != len(x):
        raise ValueError(f"expected {len(x)} 'nodes', one per row, got {len(nodes)}")
    if not all(-1 <= node < table for node in nodes):
        raise ValueError(f"expected 'nodes' in [-1, {table})")
    return x, np.array(nodes, np.int64)


def build(student: PackedStudent) -> FastAPI:
    """Build the service of one student."""
    batcher = Batcher(student.predict_proba)
    names = student.classes

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(batcher.run())
        yield
        worker.cancel()

    app = FastAPI(title="gmoe_ext student", lifespan=lifespan)

    @app.exception_handler(RequestValidationError)
    async def refuse(_: Request, error: RequestValidationError) -> JSONResponse:
        """Say what is wrong and where; the value itself may be NaN, which JSON cannot hold."""
        problems = [{"loc": list(one["loc"]), "msg": one["msg"]} for one in error.errors()]
        return JSONResponse({"detail": problems}, 422)

    @app.get("/info")
    async def info() -> dict[str, Any]:
        """Describe the student and count the requests and batches so far."""
        return {"student": student.info(), "requests": batcher.requests, "batches": batcher.batches}

    @app.post("/predict")
    async def predict(question: Question) -> dict[str, Any]:
        """Return the most probable classes of each row, their probabilities and, if known, their names."""
        try:
            proba = await batcher.ask(*checked(student, question))
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        except Overloaded as error:
            raise HTTPException(503, "too many rows are waiting") from error
        top = np.argsort(-proba, axis=1, kind="stable")[:, : question.top]
        answer: dict[str, Any] = {"class": top.tolist(), "probability": np.take_along_axis(proba, top, 1).tolist()}
        if names is not None:
            answer["name"] = [[names[i] for i in row] for row in top]
        return answer

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a packed student over HTTP.")
    parser.add_argument("--student", required=True, help="file written by gmoe_ext.export.pack")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: any free port, which is printed")
    options = parser.parse_args()
    uvicorn.run(build(PackedStudent.load(options.student)), host=options.host, port=options.port)


if __name__ == "__main__":
    main()
