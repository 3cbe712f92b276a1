"""cosine_topk, alone and with the moving average of the memories; on a GPU against a copy of the rows that it reads."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from gmoe_ext import ops, reference

from ..rivals import routing as rivals
from . import inputs, parity
from .claim import Claim, Experiment, Microseconds, Ratio, Variant, Variants, cost, optional, speedup
from .settings import Settings, compiled, imported

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
    """Prepare ours, the floor, the eager forms and the libraries."""
    x, memory = _operands(rows)
    gate, index = reference.cosine_topk(x, memory, K)
    right = parity.same_routing(gate, index)
    moved = parity.same(reference.cosine_topk_update(x, memory, K, RATE)[2])

    def moved_too(result: tuple[Tensor, Tensor, Tensor]) -> None:
        right(result[:2])
        moved(result[2])

    def faiss() -> Variant:
        settings.rival("faiss", "faiss")
        run = imported("faiss", lambda: rivals.faiss_search(x, memory, K, settings.threads))
        return Variant(run, parity.same_index(index))

    def kmeans() -> Variant:
        settings.rival("scikit-learn", "sklearn")
        run = imported("scikit-learn", lambda: rivals.kmeans_predict(x, memory, settings.threads))
        return Variant(run, parity.same_index(index[:, 0]))

    return {
        "ours": Variant(lambda: ops.cosine_topk(x, memory, K), right),
        "ours with average": Variant(lambda: ops.cosine_topk_update(x, memory, K, RATE), moved_too),
        "x.sum()": Variant(x.sum),
        "eager": Variant(lambda: rivals.eager(x, memory, K), right),
        "published": Variant(lambda: rivals.published(x, memory, K, RATE), moved_too),
        "torch.compile": optional(lambda: Variant(partial(compiled(settings, rivals.eager), x, memory, K), right)),
        "faiss": optional(faiss),
        "scikit-learn": optional(kmeans),
    }


def one_row(settings: Settings) -> Variants:
    """Prepare one row, and no rows for the cost of the call itself."""
    x, memory = _operands(1)
    right = parity.same_routing(*reference.cosine_topk(x, memory, K))
    nothing = x[:0]
    return {
        "ours": Variant(lambda: ops.cosine_topk(x, memory, K), right),
        "ours, no rows": Variant(lambda: ops.cosine_topk(nothing, memory, K)),
        "ours with average": Variant(lambda: ops.cosine_topk_update(x, memory, K, RATE)),
        "eager": Variant(lambda: rivals.eager(x, memory, K), right),
        "torch.compile": optional(lambda: Variant(partial(compiled(settings, rivals.eager), x, memory, K), right)),
    }


def gpu_experiments(settings: Settings) -> list[Experiment]:
    """170,000 rows in both types; a batch, for the record."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        for rows, claimed in ((settings.size(170_000, 300), dtype == torch.float32), (settings.size(1024, 64), False)):
            name = f"cuda routing/{rows}x{DIM} {str(dtype).removeprefix('torch.')}"
            source = "routing >= 80% of copy bandwidth"
            claim = Claim(f"{name}/bandwidth", source, Ratio(("copy",), ("ours",)), 0.8)
            prepare = partial(gpu_forward, settings, rows, dtype)
            found.append(Experiment(name, prepare, (claim,) if claimed else ()))
    return found


def gpu_forward(settings: Settings, rows: int, dtype: torch.dtype) -> Variants:
    """Prepare ours, which reads every row once, and a copy, which also writes it. Work is the bytes that must move."""
    x, memory = (value.to(settings.device, dtype) for value in _operands(rows))
    # Every kernel computes in float32; a reference that rounds in between chooses other experts here and there.
    right = parity.same_routing(*reference.cosine_topk(x.float(), memory.float(), K))
    of_eager = right if dtype == torch.float32 else None
    copied, read = torch.empty_like(x), float(x.numel() * x.element_size())

    def by_inductor() -> Variant:
        return Variant(partial(compiled(settings, rivals.eager), x, memory, K), of_eager, read)

    return {
        "ours": Variant(lambda: ops.cosine_topk(x, memory, K), right, read),
        "ours with average": Variant(lambda: ops.cosine_topk_update(x, memory, K, RATE), work=read),
        "copy": Variant(lambda: copied.copy_(x), work=2 * read),
        "eager": Variant(lambda: rivals.eager(x, memory, K), of_eager, read),
        "published": Variant(lambda: rivals.published(x, memory, K, RATE), work=read),
        "torch.compile": optional(by_inductor),
    }
