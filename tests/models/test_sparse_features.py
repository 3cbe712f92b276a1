"""Every model gives the same results and gradients for FeatureRows as for the matrix they stand for."""

from __future__ import annotations

import pytest
import torch

from gmoe_ext import FeatureRows, Graph, models
from gmoe_ext.distill import kmeans_start
from gmoe_ext.models.gnn import NodeServer
from gmoe_ext.nn.dropout import drop_features
from gmoe_ext.nn.linear_experts import lay_side_by_side

NODES, WORDS, PLACES = 90, 40, 4
STUDENTS = {
    "mlp": {},
    "ensemble": {"num_members": 2},
    "rbm": {"num_experts": 4, "k": 2},
    "rbm-parameter": {"num_experts": 4, "k": 2, "memory": "parameter", "normalize_inputs": False},
    "rbm-without-attention": {"num_experts": 3, "k": 3, "input_attention": False, "gate_gradient": True},
    "moe": {"num_experts": 4, "k": 2},
    "moe-released": {"num_experts": 4, "k": 2, "variant": "released_code"},
}
GNNS = {
    "gcn": {},
    "sage": {},
    "gin": {},
    "gmoe-gcn": {"num_experts": 4, "num_hop1": 2, "k": 2},
    "gmoe-sage": {"num_experts": 3, "num_hop1": 0, "k": 1, "norm": "routed"},
    "gmoe-gin": {"num_experts": 4, "num_hop1": 3, "k": 2, "norm": "all_nodes"},
}


def features(dense: bool = True) -> FeatureRows:
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(NODES, WORDS, generator=generator) < 0.2
    kept[:, 0] = True  # no empty row: its cosines are all 0, and ties go by the last bit
    rows = FeatureRows.from_dense(torch.where(kept, torch.randn(NODES, WORDS, generator=generator).double(), 0.0))
    return rows.cat(torch.randn(NODES, PLACES, generator=generator).double()) if dense else rows


def graph() -> Graph:
    return Graph.from_edge_index(torch.randint(NODES, (2, 300), generator=torch.Generator().manual_seed(1)), NODES)


def step(model, rows, *graphs):
    torch.manual_seed(5)  # of the gates' noise
    model.zero_grad()
    logits, aux = model(rows, *graphs)
    (logits.square().mean() + aux).backward()
    if isinstance(model, models.RbM):
        model.after_step(0.1)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": logits.detach(), "aux": aux.detach()} | found | dict(model.named_buffers())


def assert_same_steps(make, rows, *graphs):
    """Two training steps and an evaluation, the weights of the sparse one side by side in memory."""
    results = []
    for x in (rows, rows.to_dense()):
        model = make()
        if x is rows:
            lay_side_by_side(model, rows.shape[1])
        seen = [{name: value.clone() for name, value in step(model, x, *graphs).items()} for _ in range(2)]
        model.eval()
        results.append([*seen, {"logits": model(x, *graphs).logits.detach()}])
    for ours, theirs in zip(*results, strict=True):
        assert ours.keys() == theirs.keys() and len(ours) > 0
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kind", STUDENTS)
def test_a_student_trains_on_sparse_rows_as_on_dense_ones(kind):
    rows = features()

    def make():
        torch.manual_seed(0)
        shape = {"in_dim": rows.shape[1], "hidden_dim": 8, "out_dim": 3, "num_layers": 2}
        return models.build(kind.partition("-")[0], **shape, **STUDENTS[kind]).double()

    assert_same_steps(make, rows)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("kind", GNNS)
def test_a_gnn_trains_on_sparse_rows_as_on_dense_ones(kind, dense):
    rows, edges = features(dense), graph()

    def make():
        torch.manual_seed(0)
        shape = {"in_dim": rows.shape[1], "hidden_dim": 8, "out_dim": 3, "num_layers": 2, "dropout": 0.0}
        model = models.build(kind, **shape, **GNNS[kind]).double()
        for name, parameter in model.named_parameters():  # gates start at 0, where every choice is a tie
            if "gate" in name:
                torch.nn.init.normal_(parameter)
        return model

    assert_same_steps(make, rows, edges)


def test_pretraining_and_the_start_of_routing_are_those_of_dense_rows():
    rows = features()
    students = []
    for x in (rows, rows.to_dense()):
        torch.manual_seed(0)
        shape = {"in_dim": rows.shape[1], "hidden_dim": 8, "out_dim": 3, "num_layers": 2}
        student = models.build("rbm", **shape, num_experts=4, k=2).double()
        student.set_pretraining(True)
        first = step(student, x)
        kmeans_start(student, x, seed=0, restarts=2)
        students.append(first | step(student, x))
    for name, value in students[0].items():
        torch.testing.assert_close(value, students[1][name], rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("slots", [None, 3])
def test_dropout_draws_for_stored_values_alone(slots):
    rows = features()
    torch.manual_seed(0)
    dropped = drop_features(rows, 0.5, slots)
    shape = (NODES, WORDS + PLACES) if slots is None else (NODES, slots, WORDS + PLACES)
    got, whole = dropped.to_dense(), rows.to_dense()
    assert got.shape == shape
    whole = whole if slots is None else whole.unsqueeze(1).expand(shape)
    kept = got != 0
    torch.testing.assert_close(got[kept], 2 * whole[kept])
    share = kept.sum() / (whole != 0).sum()
    assert 0.4 < share < 0.6
    if slots is not None:
        assert not torch.equal(got[:, 0], got[:, 1])


def test_first_layer_dropout_trains_on_sparse_rows():
    rows = features()
    torch.manual_seed(0)
    options = {"num_experts": 4, "k": 2, "dropout": 0.5, "first_layer_dropout": True}
    student = models.build("rbm", in_dim=rows.shape[1], hidden_dim=8, out_dim=3, num_layers=2, **options).double()
    first, second = step(student, rows), step(student, rows)
    assert not torch.equal(first["logits"], second["logits"])
    assert all(value.isfinite().all() for value in second.values())


def test_a_server_of_single_nodes_reads_sparse_rows():
    rows, edges = features(), graph()
    torch.manual_seed(0)
    model = models.build("sage", in_dim=rows.shape[1], hidden_dim=8, out_dim=3, num_layers=2).double().eval()
    nodes = torch.tensor([3, 50])
    answers = [NodeServer(model, x, edges).answer(nodes) for x in (rows, rows.to_dense())]
    torch.testing.assert_close(answers[0], answers[1])
