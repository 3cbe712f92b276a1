"""Two variants of RbM: what the paper says, and what the code released with it does.

Only settings left open (None) are filled in, so that a recipe can mix the two. Beside these settings the released code
reports the best test score over epochs, which every result here holds as `test_best`, beside `test_at_best_val`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ..config import Config

_STUDENT: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {
        "rbm": {"first_layer_dropout": False, "memory": "buffer"},
        "moe": {"first_layer_dropout": False, "variant": "paper", "k": 3},
    },
    "released_code": {
        "rbm": {"first_layer_dropout": True, "memory": "parameter"},
        "moe": {"first_layer_dropout": True, "variant": "released_code", "k": 4},
    },
}
_DISTILL: dict[str, dict[str, Any]] = {
    "paper": {
        "normalized_tau": True,
        "pair_weight": "degree",
        "noise_draws": 10,
        "squared_reliability": True,
        "reset_optimizer": True,
        "batch_weights": 0,
    },
    "released_code": {
        "normalized_tau": False,
        "pair_weight": "equal",
        "noise_draws": 1,
        "squared_reliability": False,
        "power_bin_offset": 0.05,
        "reset_optimizer": False,
        "batch_weights": 4096,
    },
}


def resolve(config: Config, split: str) -> Config:
    """The settings with every open one filled in by `distill.protocol`.

    Args:
        config: as given; not changed.
        split: rule of the data's split; the released code holds out the whole test set of a public one.
    """
    protocol = config.distill.protocol
    student = _fill(config.student, _STUDENT[protocol].get(config.student.model or "", {}))
    data = _fill(config.data, {"heldout_rate": 1.0 if protocol == "released_code" and split == "public" else 0.2})
    return dataclasses.replace(config, data=data, student=student, distill=_fill(config.distill, _DISTILL[protocol]))


def _fill(section: Any, values: dict[str, Any]) -> Any:
    return dataclasses.replace(section, **{k: v for k, v in values.items() if getattr(section, k) is None})
