"""cosine_topk against the copy of the rows that it reads."""

from __future__ import annotations

from functools import partial

import torch

from gmoe_ext import ops, reference

from ...rivals import routing as rivals
from .. import inputs, parity
from ..claim import Claim, Experiment, Ratio, Variant, Variants, optional
from ..compiled import compiled
from ..settings import Settings

DIM, NUM_EXPERTS, K, RATE = 256, 8, 3, 0.9


def experiments(settings: Settings) -> list[Experiment]:
    """170,000 rows in both types; a batch, for the record."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        for rows, claimed in ((settings.size(170_000, 300), dtype == torch.float32), (settings.size(1024, 64), False)):
            name = f"cuda routing/{rows}x{DIM} {str(dtype).removeprefix('torch.')}"
            source = "routing >= 80% of copy bandwidth"
            claim = Claim(f"{name}/bandwidth", source, Ratio(("copy",), ("ours",)), 0.8)
            prepare = partial(forward, settings, rows, dtype)
            found.append(Experiment(name, prepare, (claim,) if claimed else ()))
    return found


def forward(settings: Settings, rows: int, dtype: torch.dtype) -> Variants:
    """Ours reads every row once; a copy reads it and writes it. Work is counted in bytes that have to move."""
    x = inputs.normal(rows, DIM, seed=0, dtype=dtype).to(settings.device)
    memory = inputs.normal(NUM_EXPERTS, DIM, seed=1, dtype=dtype).to(settings.device)
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
