"""cosine_topk, alone and with the moving average of the memories."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from gmoe_ext import ops, reference

from ..rivals import routing as rivals
from . import inputs, parity
from .claim import Claim, Experiment, Microseconds, Variant, Variants, cost, optional, speedup
from .compiled import compiled
from .settings import Settings, imported

DIM, NUM_EXPERTS, K, RATE = 256, 8, 3, 0.9


def experiments(settings: Settings) -> list[Experiment]:
    """170,000 rows, with and without the moving average; one row."""
    rows = settings.size(170_000, 500)
    name = f"cosine_topk/{rows}x{DIM}"
    claims = (
        cost(f"{name}/sum", "<= 1.5x the time of x.sum() over the same rows", "x.sum()", 1.5),
        speedup(f"{name}/eager", ">= 10x eager", "eager", 10.0),
        speedup(f"{name}/faiss", ">= 3x faiss", "faiss", 3.0),
        speedup(f"{name}/scikit-learn", ">= 3x scikit-learn", "scikit-learn", 3.0),
        speedup(
            f"{name}/average", ">= 60x with EMA against the published form", "published", 60.0, "ours with average"
        ),
    )
    one = f"cosine_topk/1x{DIM}"
    inside = Claim(
        f"{one}/inside", "1 x 256: <= 3 us inside the op", Microseconds("ours", less="ours, no rows"), 3.0, "at most"
    )
    return [
        Experiment(name, partial(many_rows, settings, rows), claims),
        Experiment(one, partial(one_row, settings), (inside,)),
    ]


def _operands(rows: int) -> tuple[Tensor, Tensor]:
    return inputs.normal(rows, DIM, seed=0), inputs.normal(NUM_EXPERTS, DIM, seed=1)


def many_rows(settings: Settings, rows: int) -> Variants:
    """Ours, the floor, eager forms, the libraries."""
    x, memory = _operands(rows)
    gate, index = reference.cosine_topk(x, memory, K)
    right = parity.same_routing(gate, index)
    moved = parity.same(reference.cosine_topk_update(x, memory, K, RATE)[2])

    def moved_too(result: tuple[Tensor, Tensor, Tensor]) -> None:
        right(result[:2])
        moved(result[2])

    return {
        "ours": Variant(lambda: ops.cosine_topk(x, memory, K), right),
        "ours with average": Variant(lambda: ops.cosine_topk_update(x, memory, K, RATE), moved_too),
        "x.sum()": Variant(x.sum),
        "eager": Variant(lambda: rivals.eager(x, memory, K), right),
        "published": Variant(lambda: rivals.published(x, memory, K, RATE), moved_too),
        "torch.compile": optional(lambda: _compiled(settings, x, memory, right)),
        "faiss": optional(lambda: _faiss(settings, x, memory, index)),
        "scikit-learn": optional(lambda: _kmeans(settings, x, memory, index)),
    }


def one_row(settings: Settings) -> Variants:
    """One row, and what the call itself costs."""
    x, memory = _operands(1)
    right = parity.same_routing(*reference.cosine_topk(x, memory, K))
    nothing = x[:0]
    return {
        "ours": Variant(lambda: ops.cosine_topk(x, memory, K), right),
        "ours, no rows": Variant(lambda: ops.cosine_topk(nothing, memory, K)),
        "ours with average": Variant(lambda: ops.cosine_topk_update(x, memory, K, RATE)),
        "eager": Variant(lambda: rivals.eager(x, memory, K), right),
        "torch.compile": optional(lambda: _compiled(settings, x, memory, right)),
    }


def _compiled(settings: Settings, x: Tensor, memory: Tensor, right: object) -> Variant:
    run = compiled(settings, rivals.eager)
    return Variant(lambda: run(x, memory, K), right)  # type: ignore[arg-type]


def _faiss(settings: Settings, x: Tensor, memory: Tensor, index: Tensor) -> Variant:
    settings.rival("faiss", "faiss")
    run = imported("faiss", lambda: rivals.faiss_search(x, memory, K, settings.threads))
    return Variant(run, parity.same_index(index))


def _kmeans(settings: Settings, x: Tensor, memory: Tensor, index: Tensor) -> Variant:
    settings.rival("scikit-learn", "sklearn")
    run = imported("scikit-learn", lambda: rivals.kmeans_predict(x, memory, settings.threads))
    return Variant(run, parity.same_index(index[:, 0]))
