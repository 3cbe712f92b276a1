"""The k-means start: clones, centres of routed inputs, determinism."""

import sys

import pytest
import torch
from torch.nn import functional as F

from gmoe_ext import models
from gmoe_ext.distill import kmeans_init, kmeans_start
from gmoe_ext.distill.kmeans_init import kmeans
from gmoe_ext.errors import DataError, MissingExtraError

pytest.importorskip("sklearn")


def student(**options):
    torch.manual_seed(0)
    shape = {"in_dim": 6, "hidden_dim": 8, "out_dim": 3, "num_layers": 3, "num_experts": 3, "k": 2, "dropout": 0.5}
    model = models.build("rbm", **{**shape, **options})
    model.set_pretraining(True)
    return model.train()


def blobs(rows=60):
    torch.manual_seed(1)
    centres = 4 * torch.eye(6)[:3]
    return centres.repeat(rows // 3, 1) + 0.1 * torch.randn(rows, 6)


def test_memories_of_the_first_layer_are_the_clusters_of_the_input():
    model, x = student(), blobs()
    kmeans_start(model, x, seed=0)
    means = F.normalize(torch.stack([F.normalize(x[c::3]).mean(0) for c in range(3)]))
    order = (model.layers[0].router.memory @ means.T).argmax(1)
    torch.testing.assert_close(model.layers[0].router.memory, means[order])


def test_deeper_memories_cluster_what_the_routed_layers_put_out():
    model, x = student(), blobs()
    kmeans_start(model, x, seed=0)
    model.eval()
    hidden = model.layers[0](x)[0].relu()
    centres = F.normalize(kmeans(F.normalize(hidden), 3, seed=0))
    torch.testing.assert_close(model.layers[1].router.memory, centres)


def test_it_ends_pretraining_with_clones_and_keeps_the_mode():
    model = student()
    first = model.layers[0].experts.weight[0].clone()
    kmeans_start(model, blobs(), seed=0)
    assert model.training and not any(layer.pretraining for layer in model.layers)
    for layer in model.layers:
        assert torch.equal(layer.experts.weight[1], layer.experts.weight[0])
    assert torch.equal(model.layers[0].experts.weight[2], first)


def test_the_same_seed_places_the_same_memories():
    left, right = student(), student()
    kmeans_start(left, blobs(), seed=7)
    kmeans_start(right, blobs(), seed=7)
    assert all(torch.equal(left.state_dict()[name], value) for name, value in right.state_dict().items())


def test_restarts_on_a_sample_are_as_good_as_those_on_all_rows(monkeypatch):
    torch.manual_seed(0)
    x = F.normalize(torch.randn(3000, 5) + 2 * torch.eye(5).repeat(600, 1), dim=1)

    def inertia(seed):
        return float(torch.cdist(x, kmeans(x, 5, seed)).square().amin(1).sum())

    sampled = [inertia(seed) for seed in range(4)]
    monkeypatch.setattr(kmeans_init, "SAMPLE_ROWS", len(x))
    assert max(sampled) < 1.002 * min(inertia(seed) for seed in range(4))


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    for module in ("sklearn.cluster", "threadpoolctl"):  # the second is installed with the first
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match="needs 'scikit-learn'"):
        kmeans(torch.randn(9, 2), 3, seed=0)


def test_fewer_rows_than_experts_is_a_data_error():
    with pytest.raises(DataError, match="got 2 rows for 3"):
        kmeans_start(student(), torch.ones(2, 6), seed=0)
