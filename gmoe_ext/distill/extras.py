"""The libraries of the extra `distill`, imported when they are needed and checked before a run begins."""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import MissingExtraError

# module: (package on PyPI, purpose)
_PURPOSES = {
    "gensim.models": ("gensim", "The embedding of DeepWalk positions (distill.positions)"),
    "sklearn.cluster": ("scikit-learn", "The k-means start of an RbM student"),
    "scipy.optimize": ("scipy", "The fit of KRD's sampling power (distill.reliable)"),
}


def load(module: str) -> Any:
    """Import one of the extra's modules.

    Raises:
        MissingExtraError: it is not installed.
    """
    package, purpose = _PURPOSES[module]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(package, "distill", purpose) from error
