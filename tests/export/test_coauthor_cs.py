"""A student of the recipe's sizes on every node of coauthor_cs: the packed answers are the model's.

Features as the recipe takes them, whose counts make logits of hundreds, and divided by their row's sum, which the file
then does, with logits around one. N nodes, D features and positions.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from gmoe_ext import data, models
from gmoe_ext.export import pack
from gmoe_ext.feature_rows import dense_of
from gmoe_ext.models import RbM
from gmoe_ext.runtime import PackedStudent

pytestmark = pytest.mark.slow

POSITIONS = 64
STEPS = 6
NEAR_TIE = 1e-6  # between the k-th cosine and the next: below, rounding decides (docs/reference/runtime_format.md)
CLOSE = 1e-5  # of the largest logit or of 1, whichever is more
AT_ONCE = 2048


@dataclass
class Served:
    """The student in both forms, what it is asked and what it must answer.

    Attributes:
        logits: [N, C] of the model.
        clear: [N] whether no layer has a near tie.
        bound: on the difference of a logit.
    """

    packed: PackedStudent
    x: np.ndarray
    nodes: np.ndarray
    logits: np.ndarray
    clear: np.ndarray
    bound: float


@pytest.fixture(scope="module")
def cs(data_root: Path) -> data.NodeData:
    if not (data_root / "coauthor_cs.npz").is_file():
        pytest.skip("GMOE_EXT_DATA has no coauthor_cs.npz")
    found = data.load("coauthor_cs", data_root)
    assert isinstance(found, data.NodeData)
    return found


@pytest.fixture(scope="module", params=["none", "row_l1"])
def served(request: pytest.FixtureRequest, cs: data.NodeData, tmp_path_factory: pytest.TempPathFactory) -> Served:
    torch.manual_seed(0)
    table = functional.normalize(torch.randn(cs.num_nodes, POSITIONS))
    features = dense_of(cs.row_normalized().x if request.param == "row_l1" else cs.x)
    train = cs.train_idx
    model = fitted(torch.cat([features[train], table[train]], 1), cs.y[train], cs.num_classes)
    path = tmp_path_factory.mktemp("cs") / "student.safetensors"
    packed = PackedStudent.load(pack(model, path, positions=table, normalize=request.param))
    logits, clear = [], []
    with torch.inference_mode():
        for rows, places in zip(features.split(AT_ONCE), table.split(AT_ONCE), strict=True):
            whole = torch.cat([rows, places], 1)
            logits.append(model(whole).logits)
            clear.append(smallest_gap(model, whole) > NEAR_TIE)
    wanted = torch.cat(logits).numpy()
    bound = CLOSE * max(1.0, float(np.abs(wanted).max()))
    return Served(packed, dense_of(cs.x).numpy(), np.arange(cs.num_nodes), wanted, torch.cat(clear).numpy(), bound)


def fitted(x_ND: Tensor, y_N: Tensor, classes: int) -> RbM:
    """A student of the sizes of the recipe coauthor_cs_rbm_tran after a few steps on the labels."""
    sizes = dict(in_dim=x_ND.shape[1], hidden_dim=128, out_dim=classes, num_layers=2, num_experts=7, k=3)
    model = models.build("rbm", **sizes)
    assert isinstance(model, RbM)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for _ in range(STEPS):
        logits, aux = model(x_ND)
        optimizer.zero_grad()
        (functional.cross_entropy(logits, y_N) + aux).backward()
        optimizer.step()
    return model.eval()


def smallest_gap(model: RbM, x_ND: Tensor) -> Tensor:
    """[N] least difference, over layers, of the k-th cosine and the next, in double precision."""
    gap = torch.full((len(x_ND),), 2.0, dtype=torch.float64)
    h = x_ND
    for position, layer in enumerate(model.expert_layers()):
        memory_ED = functional.normalize(layer.router.memory.double())
        cosine = (functional.normalize(h.double()) @ memory_ED.T).sort(descending=True).values
        gap = torch.minimum(gap, cosine[:, layer.k - 1] - cosine[:, layer.k])
        h = model.between(position, layer(h)[0])
    return gap


def test_every_node_gets_the_model_s_logits_and_class(served: Served) -> None:
    logits = served.packed.predict(served.x, served.nodes)
    assert served.clear.mean() > 0.999
    wanted, got = served.logits[served.clear], logits[served.clear]
    assert np.abs(got - wanted).max() <= served.bound
    top = np.sort(wanted, 1)
    decided = top[:, -1] - top[:, -2] > 2 * served.bound  # else both classes are within the bound on the logits
    assert decided.mean() > 0.999
    assert np.array_equal(got.argmax(1)[decided], wanted.argmax(1)[decided])


def test_sparse_rows_answer_as_dense_ones(served: Served) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    logits = served.packed.predict(sparse.csr_array(served.x), served.nodes)
    assert np.abs(logits - served.logits)[served.clear].max() <= served.bound


def test_sixteen_callers_get_the_same_answers_at_once(served: Served) -> None:
    expected = served.packed.predict(served.x, served.nodes)

    def call(caller: int) -> bool:
        mine = served.nodes[caller::16]
        pieces = np.split(mine, [1, 2, 5, 40, 400])
        return all(np.array_equal(served.packed.predict(served.x[some], some), expected[some]) for some in pieces)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(call, range(16)))
