"""python -m bench.device.small_calls: every operator on a GPU, forward and backward, small enough for a sanitizer.

What the contract tests compare, compute-sanitizer watches here: indices, races, words that nobody wrote. With
PYTORCH_NO_CUDA_MEMORY_CACHING=1 every tensor is an allocation of its own, whose end the sanitizer knows.
"""

from __future__ import annotations

import sys

import torch

from tests.ops.opinfo import OPS
from tests.ops.test_contract_device import everything

ROWS = (1, 33)


def main() -> int:
    """Run all calls; 77 where there is no GPU."""
    if not torch.cuda.is_available():
        print("no GPU here", file=sys.stderr)
        return 77
    device = torch.device("cuda", torch.cuda.current_device())
    for spec in OPS:
        for dtype in (torch.float32, torch.bfloat16) if spec.floating else (torch.float32,):
            for rows in ROWS:
                everything(spec, spec.rows(rows).to(dtype).on(device))
        torch.cuda.synchronize()
        print(spec.name, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
