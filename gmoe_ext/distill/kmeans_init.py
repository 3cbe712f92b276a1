"""The k-means start of an RbM student's routing (RbM, section 4.3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .. import extras
from ..errors import DataError
from ..feature_rows import FeatureRows, Features
from ..models import RbM

# Rows on which restarts compete; the best of them goes on with all rows.
SAMPLE_ROWS = 2048


@torch.no_grad()
def kmeans_start(model: RbM, x_ND: Features, seed: int, restarts: int = 10) -> None:
    """End a student's pre-training: clone each layer's expert 0 and place its memory at k-means centres of its inputs.

    The inputs of layer l + 1 are the outputs of the routed layers up to l, in evaluation mode.

    Args:
        model: a pre-trained RbM; changed in place, it routes afterwards.
        x_ND: all inputs that training may see.
        seed: seeds k-means++.
        restarts: runs of ``kmeans``.

    Raises:
        DataError: fewer rows than experts.
        MissingExtraError: scikit-learn is not installed.

    Determinism: the same bits for the same seed; k-means runs on one thread, because its sums depend on their order.

    Examples:
        >>> kmeans_start(student, inputs, seed=0)
    """
    training = model.training
    model.eval()
    h: Any = x_ND
    for position, layer in enumerate(model.expert_layers()):
        unit = h.unit_rows() if isinstance(h, FeatureRows) else F.normalize(h, dim=1)
        layer.start_routing(kmeans(unit, layer.num_experts, seed, restarts).to(layer.router.memory))
        h = model.between(position, layer(h)[0])
    model.train(training)


def kmeans(x_ND: Features, num_clusters: int, seed: int, restarts: int = 10) -> Tensor:
    """Compute the centres [num_clusters, D] of Lloyd's k-means from k-means++ starts, in x's dtype and device.

    Restarts compete by their inertia on a random sample of ``SAMPLE_ROWS`` rows; the centres of the best one are where
    k-means of all rows starts.
    """
    if x_ND.shape[0] < num_clusters:
        raise DataError(
            f"k-means start: expected at least as many rows as experts, got {x_ND.shape[0]} rows for {num_clusters}\n"
            "  fix: lower --student.num_experts"
        )
    rows: Any = _csr(x_ND) if isinstance(x_ND, FeatureRows) else x_ND.detach().cpu().numpy()
    seed &= 0xFFFFFFFF
    start: Any = "k-means++"
    size = max(SAMPLE_ROWS, num_clusters)
    if restarts > 1 and len(x_ND) > size:
        sample = np.sort(np.random.default_rng(seed).choice(len(x_ND), size, replace=False))
        start, restarts = _lloyd(rows[sample], num_clusters, start, restarts, seed), 1
    return torch.from_numpy(_lloyd(rows, num_clusters, start, restarts, seed)).to(x_ND.device, x_ND.dtype)


def _lloyd(rows: Any, num_clusters: int, start: Any, restarts: int, seed: int) -> Any:
    cluster = extras.load("sklearn.cluster")
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # installed with scikit-learn

    with threadpool_limits(limits=1):
        return cluster.KMeans(num_clusters, init=start, n_init=restarts, random_state=seed).fit(rows).cluster_centers_


def _csr(x: FeatureRows) -> Any:
    """Make a matrix of SciPy, dense columns included, with indices of the one width that scikit-learn takes."""
    sparse = extras.load("scipy.sparse")
    values = torch.ones_like(x.columns, dtype=x.dtype) if x.values is None else x.values
    parts = (part.detach().cpu().numpy() for part in (values, x.columns, x.offsets.to(torch.int32)))
    csr = sparse.csr_matrix(tuple(parts), shape=(len(x), x.num_sparse))
    return csr if x.dense is None else sparse.hstack([csr, x.dense.detach().cpu().numpy()], "csr")
