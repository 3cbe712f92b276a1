"""Cosine routing and the moving average of memories without the operators. N rows, E experts, K chosen, D features."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import dense_gate, published_parts


def eager(x_ND: Tensor, memory_ED: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Normalise, multiply, topk, softmax."""
    cosine_NE = F.normalize(x_ND, dim=1) @ F.normalize(memory_ED, dim=1).T
    top_NK, index_NK = torch.topk(cosine_NE, k, dim=1)
    return torch.softmax(top_NK, dim=1), index_NK


def published(x_ND: Tensor, memory_ED: Tensor, k: int, rate: float) -> tuple[Tensor, Tensor, Tensor]:
    """Routing with RbM's published update of the memories.

    The rows go through the dispatcher: each of the N k slots gets its row, its whole row of dense gates and of the
    mask; each expert normalises its rows once more and averages them by a softmax over its own gates.
    """
    unit_ED = F.normalize(memory_ED, dim=1)
    cosine_NE = F.normalize(x_ND, dim=1) @ unit_ED.T
    top_NK, index_NK = torch.topk(cosine_NE, k, dim=1)
    gate_NK = torch.softmax(top_NK, dim=1)
    gates_NE = dense_gate(index_NK, gate_NK, len(memory_ED))
    rows, sizes = published_parts(gates_NE)
    routed = [every[rows].split(sizes) for every in (x_ND, gates_NE, gates_NE > 0)]
    mean_ED = torch.zeros_like(memory_ED)
    for expert, (piece, gates, mask) in enumerate(zip(*routed, strict=True)):
        share = torch.softmax(gates[mask[:, expert], expert], dim=0)
        mean_ED[expert] = (share.unsqueeze(1) * F.normalize(piece, dim=1)).sum(0)
    return gate_NK, index_NK, rate * unit_ED + (1 - rate) * mean_ED


def faiss_search(x_ND: Tensor, memory_ED: Tensor, k: int, threads: int) -> Callable[[], np.ndarray]:
    """faiss's exact search by inner product with unit memories: the k experts of each row, no gates.

    The rows are not normalised, which leaves the order as it is. ModuleNotFoundError where faiss is not installed.
    """
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatIP(memory_ED.shape[1])
    index.add(F.normalize(memory_ED, dim=1).numpy())
    rows = x_ND.numpy()
    return lambda: index.search(rows, k)[1]


def kmeans_predict(x_ND: Tensor, memory_ED: Tensor, threads: int) -> Callable[[], np.ndarray]:
    """scikit-learn's KMeans.predict with unit memories as centres: the nearest expert of each row.

    ModuleNotFoundError where scikit-learn is not installed.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    centres = F.normalize(memory_ED, dim=1).numpy()
    model = KMeans(len(centres), init=centres, n_init=1, max_iter=1).fit(centres)
    rows = x_ND.numpy()

    def run() -> np.ndarray:
        with threadpool_limits(threads):
            return model.predict(rows)

    return run
