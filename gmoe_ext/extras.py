"""Optional libraries, imported when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from .errors import MissingExtraError

# module: (package on PyPI, extra that installs it, purpose)
_PURPOSES = {
    "gensim.models": ("gensim", "distill", "The embedding of DeepWalk positions (distill.positions)"),
    "matplotlib.figure": ("matplotlib", "plot", "Plotting"),
    "onnx": ("onnx", "onnx", "Export as ONNX"),
    "onnxruntime": ("onnxruntime", "onnx", "Running an ONNX graph"),
    "onnxscript": ("onnxscript", "onnx", "Export as ONNX"),
    "pyarrow": ("pyarrow", "predict", "Reading or writing .parquet"),
    "pyarrow.parquet": ("pyarrow", "predict", "Reading or writing .parquet"),
    "scipy.sparse": ("scipy", "distill", "The k-means start of an RbM student on sparse features"),
    "scipy.optimize": ("scipy", "distill", "The fit of KRD's sampling power (distill.reliable)"),
    "sklearn.cluster": ("scikit-learn", "distill", "The k-means start of an RbM student"),
}


def load(module: str) -> Any:
    """Import a module of an optional library.

    Raises:
        MissingExtraError: it is not installed.
    """
    package, extra, purpose = _PURPOSES[module]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs '{package}', which is not installed: pip install 'gmoe_ext[{extra}]'"
        ) from error
