"""The demo: two GNNs, a student of the better one, its packed file and what an answer costs."""

import json

import numpy as np
import pytest
import torch

from gmoe_ext import Graph, models
from gmoe_ext.data import synthetic
from gmoe_ext.train.__main__ import main

pytestmark = pytest.mark.native  # the packed student is served by the compiled runtime

SMALL = ["--data.num_nodes", "500", "--train.epochs", "12", "--distill.num_walks", "1", "--distill.walk_length", "10"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    run = tmp_path_factory.mktemp("demo") / "run"
    assert main([*SMALL, "--run_dir", str(run), "--device", "cpu"]) == 0
    return run


def test_the_demo_leaves_result_curves_and_a_packed_student(demo):
    result = json.loads((demo / "result.json").read_text())
    assert (result["dataset"], result["model"], result["teacher"]["model"]) == (
        "synthetic",
        "rbm",
        max([result["teacher"], *result["others"]], key=lambda one: one["val_best"])["model"],
    )
    assert set(result["us_per_node"]) == {"gcn", "gmoe-gcn", "rbm"}
    assert all(cost > 0 for costs in result["us_per_node"].values() for cost in costs.values())
    assert (demo / "curves.png").exists()
    phases = {json.loads(line)["phase"] for line in (demo / "metrics.jsonl").read_text().splitlines()}
    assert phases == {"gcn", "gmoe-gcn", "rbm"}


def test_the_packed_student_scores_what_the_result_says(demo):
    from gmoe_ext.runtime import PackedStudent

    data = synthetic.communities(num_nodes=500, seed=0)
    nodes = data.test_idx.numpy()
    logits = PackedStudent.load(demo / "student.safetensors").predict(data.x.numpy()[nodes], nodes)
    accuracy = float((logits.argmax(1) == data.y.numpy()[nodes]).mean())
    assert accuracy == pytest.approx(json.loads((demo / "result.json").read_text())["test_at_best_val"], abs=0.01)


def test_a_student_of_normalised_features_is_packed_with_their_normalisation(tmp_path):
    from gmoe_ext.export.run import load_student
    from gmoe_ext.runtime import PackedStudent

    flags = [*SMALL, "--train.epochs", "2", "--data.row_normalize", "true", "--run_dir", str(tmp_path)]
    assert main([*flags, "--device", "cpu"]) == 0
    packed, student = PackedStudent.load(tmp_path / "student.safetensors"), load_student(tmp_path)
    raw, nodes = synthetic.communities(num_nodes=500, seed=0).x, torch.arange(500)
    rows = torch.cat([raw / raw.abs().sum(1, keepdim=True), student.positions], 1)
    with torch.inference_mode():
        expected = student.model(rows).logits.numpy()
    assert packed.info()["features"]["normalize"] == student.content["normalize"] == "row_l1"
    np.testing.assert_allclose(packed.predict(raw.numpy(), nodes.numpy()), expected, rtol=1e-4, atol=1e-4)


def test_the_exporter_finds_the_student_with_its_positions(demo):
    from gmoe_ext.export.run import load_student

    student = load_student(demo)
    assert student.model.name == "rbm"
    assert student.positions is not None and student.positions.shape[0] == 500


def test_rows_of_a_file_are_answered(demo, tmp_path, capsys):
    from gmoe_ext.predict import __main__ as predict

    data = synthetic.communities(num_nodes=500, seed=0)
    student = ["--student", str(demo / "student.safetensors")]
    np.savez(tmp_path / "rows.npz", x=data.x[:3].numpy(), nodes=np.arange(3))
    assert predict.main([*student, "--input", str(tmp_path / "rows.npz")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("row,class,probability") and len(lines) == 4
    assert predict.main([*student, "--input", str(tmp_path / "rows.npz"), "--output", str(tmp_path / "out.npy")]) == 0
    assert np.load(tmp_path / "out.npy").shape == (3, 8)
    np.savetxt(tmp_path / "rows.csv", data.x[:2].numpy(), delimiter=",")
    assert predict.main([*student, "--input", str(tmp_path / "none.npy")]) == 3
    assert predict.main([*student, "--input", str(tmp_path / "rows.npz"), "--output", "out.txt"]) == 2
    (tmp_path / "bad.npy").write_bytes(b"no array")
    assert predict.main([*student, "--input", str(tmp_path / "bad.npy")]) == 3
    assert predict.main(["--student", str(tmp_path / "bad.npy"), "--input", str(tmp_path / "rows.npz")]) == 3


def test_a_stopped_demo_resumes_to_the_same_student(demo, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    from gmoe_ext.train import run

    step_done = run.Run.step_done
    flags = [*SMALL, "--run_dir", str(tmp_path), "--device", "cpu", "--resume", "auto"]

    def stopping(self, task, train, state):
        if (task.phase, state.steps) in {("gmoe-gcn", 5), ("rbm", 15)}:
            self._stop.requested = 15
        step_done(self, task, train, state)

    monkeypatch.setattr(run.Run, "step_done", stopping)
    assert main(flags) == 143
    assert main(flags) == 143
    monkeypatch.undo()
    assert main(flags) == 0
    ours, theirs = (load_file(folder / "student.safetensors") for folder in (tmp_path, demo))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert len((tmp_path / "metrics.jsonl").read_bytes().splitlines()) == 12 + 12 + 22


@pytest.mark.parametrize("model", ["moe", "ensemble"])
def test_other_students_have_their_demo(tmp_path, model):
    from gmoe_ext.export.__main__ import main as export
    from gmoe_ext.runtime import PackedStudent

    flags = ["--config", "default", "--student.model", model, *SMALL, "--train.epochs", "2"]
    assert main([*flags, "--run_dir", str(tmp_path), "--device", "cpu"]) == 0
    assert PackedStudent.load(tmp_path / "student.safetensors").info()["model"] == model
    assert export([str(tmp_path)]) == 0


def test_molecules_have_no_demo(tmp_path, capsys):
    from .files import write_molecules

    write_molecules(tmp_path)
    assert main(["--data.root", str(tmp_path), "--data.name", "tinymol", "--run_dir", str(tmp_path / "run")]) == 2
    assert "student is distilled on node data" in capsys.readouterr().err


@pytest.mark.parametrize("options", [{"name": "gcn"}, {"name": "sage"}, {"name": "gin"}, {"name": "gmoe-gcn"}])
@pytest.mark.parametrize("nodes", [[3], [499, 7, 250]])
def test_a_served_node_gets_the_answer_of_the_whole_graph(options, nodes):
    from gmoe_ext.models.gnn import NodeServer

    edges = torch.randint(3000, (2, 4000))
    x, graph = torch.randn(3000, 64), Graph.from_edge_index(torch.cat([edges, edges.flip(0)], 1), 3000)
    more = {"num_experts": 4, "num_hop1": 4, "k": 2} if "gmoe" in options["name"] else {}
    model = models.build(**options, in_dim=64, hidden_dim=16, out_dim=8, num_layers=2, **more).eval()
    server = NodeServer(model, x, graph)
    assert server.reach(torch.tensor(nodes)) is not None
    whole = model(x, graph).logits
    torch.testing.assert_close(server.answer(torch.tensor(nodes)), whole[nodes], rtol=1e-4, atol=1e-5)
