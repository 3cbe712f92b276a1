"""The command line, end to end on tiny data: what it writes, says and returns."""

import json
import sys
import warnings

import numpy as np
import pytest

from gmoe_ext.data.__main__ import main as describe
from gmoe_ext.errors import DataWarning
from gmoe_ext.train import recipes
from gmoe_ext.train.__main__ import main
from gmoe_ext.train.parse import parse

from .files import write_molecules, write_nodes

RESULT_KEYS = {
    "dataset",
    "model",
    "setting",
    "seed",
    "metric",
    "val_best",
    "test_at_best_val",
    "test_best",
    "epochs",
    "wall_s",
    "params_total",
    "params_active",
    "version",
    "config_hash",
    "data_sha256",
    "commit",
    "split",
}
SMALL = ["--model.hidden_dim", "8", "--train.epochs", "3"]


@pytest.fixture
def root(tmp_path):
    write_nodes(tmp_path / "data")
    write_molecules(tmp_path / "data")
    write_molecules(tmp_path / "data", "tinyreal", kind="real")
    write_molecules(tmp_path / "data", "tinytasks", tasks=3)
    return tmp_path


def train(root, *flags):
    return main(["--data.root", str(root / "data"), "--run_dir", str(root / "run"), "--device", "cpu", *flags])


NODES = ("--data.name", "tiny", "--model.name", "gcn", *SMALL)
DISTILLED = ("--data.name", "tiny", "--teacher.model", "sage", "--student.model", "mlp", "--distill.positions", "false")


@pytest.mark.parametrize("flags", [NODES, DISTILLED, ("--data.name", "tinymol", "--model.name", "gin", *SMALL)])
def test_what_is_not_read_is_said_once(root, flags, capsys):
    for path in (root / "data").glob("*.npz"):
        with np.load(path) as held:
            np.savez(path, **dict(held), surprise=np.zeros(3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert train(root, "--dry_run", *flags) == 0
        assert describe(["info", flags[1], "--root", str(root / "data")]) == 0
    out, error = capsys.readouterr()
    trained, described = out.split("dry run    everything works")
    assert trained.count("not read: surprise") == described.count("not read: surprise") == 1
    assert "surprise" not in error and not [one for one in caught if issubclass(one.category, DataWarning)]


def test_a_recipe_runs_with_another_student_by_flag_alone(root, capsys):
    recipe = root / "rbm.yaml"
    recipe.write_text(
        "data: {name: tiny}\nteacher: {model: sage, hidden_dim: 8}\n"
        "student: {model: rbm, hidden_dim: 8, num_experts: 3, k: 2}\n"
        "distill: {positions: false, reliable: false}\ntrain: {epochs: 2, batch_size: 0}\n"
    )
    assert train(root, "--config", str(recipe), "--student.model", "mlp") == 0
    assert json.loads((root / "run" / "result.json").read_text())["model"] == "mlp"
    assert "student    mlp has no num_experts, k: left out of the recipe" in capsys.readouterr().out


EXTRAS = {"scipy.optimize": "scipy", "gensim.models": "gensim", "sklearn.cluster": "scikit-learn"}


@pytest.mark.parametrize(("module", "package"), EXTRAS.items())
def test_a_student_without_its_libraries_is_refused_before_anything_is_lost(root, capsys, monkeypatch, module, package):
    assert train(root, "--data.name", "tiny", "--model.name", "gcn", *SMALL) == 0
    before = {path: path.read_bytes() for path in (root / "run").rglob("*") if path.is_file()}
    monkeypatch.setitem(sys.modules, module, None)
    assert train(root) == 2
    assert f"needs '{package}', which is not installed: pip install 'gmoe_ext[distill]'" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (root / "run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "model", "metric", "more"),
    [
        ("tiny", "gcn", "accuracy", []),
        ("tiny", "gmoe-sage", "accuracy", ["--model.num_experts", "4", "--model.k", "2"]),
        ("tiny", "sage", "accuracy", ["--data.setting", "inductive"]),
        ("tinymol", "gin", "rocauc", []),
        ("tinytasks", "gmoe-gcn", "rocauc", ["--model.num_hop1", "4"]),
        ("tinyreal", "gmoe-gin", "rmse", ["--model.norm", "all_nodes"]),
        ("tinyreal", "gcn", "rmse", ["--train.batch_size", "0", "--train.patience", "1"]),
    ],
)
def test_a_run_leaves_its_files(root, name, model, metric, more):
    assert train(root, "--data.name", name, "--model.name", model, *SMALL, *more) == 0
    run = root / "run"
    result = json.loads((run / "result.json").read_text())
    assert result.keys() >= RESULT_KEYS
    assert (result["dataset"], result["model"], result["metric"]) == (name, model, metric)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == result["epochs"]
    best = records[result["best_epoch"] - 1]
    assert (best["val"], best["test"]) == (result["val_best"], result["test_at_best_val"])
    assert ("expert_load" in records[0]) == ("gmoe" in model)
    assert (run / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert parse(["--config", str(run / "config.yaml")]).data.name == name


def test_the_first_line_says_where_we_are(root, capsys):
    train(root, "--data.name", "tiny", "--model.name", "gcn", "--seed", "7", *SMALL)
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("gmoe_ext ")
    assert all(word in first for word in ("| cpu |", "float32", "seed 7", str(root / "run")))


def test_equal_seeds_give_equal_results_and_others_do_not(root):
    results = []
    for seed in (0, 0, 1):
        train(root, "--data.name", "tinyreal", "--model.name", "gmoe-gcn", "--seed", str(seed), *SMALL)
        results.append(json.loads((root / "run" / "result.json").read_text())["val_best"])
    assert results[0] == results[1] != results[2]


def test_a_dry_run_tries_all_parts_and_writes_nothing(root, capsys):
    assert train(root, "--data.name", "tinymol", "--model.name", "gmoe-gcn", "--dry_run", *SMALL) == 0
    assert "one step" in capsys.readouterr().out
    assert not (root / "run").exists()


def test_exit_codes_tell_settings_from_data(root, capsys):
    assert train(root, "--data.name", "tiny", "--model.name", "gcm") == 2
    assert "known models" in capsys.readouterr().err
    assert train(root, "--data.name", "tiny", "--model.name", "gcn", "--train.epoch", "1") == 2
    assert train(root, "--data.name", "tiny", "--model.name", "gcn", "--device", "tpu") == 2
    assert train(root, "--data.name", "nope", "--model.name", "gcn") == 3
    assert "looked for" in capsys.readouterr().err
    (root / "data" / "tiny.npz").write_bytes((root / "data" / "tiny.npz").read_bytes()[:500])
    assert train(root, "--data.name", "tiny", "--model.name", "gcn") == 3


def test_without_matplotlib_a_line_says_so(root, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert train(root, "--data.name", "tiny", "--model.name", "gcn", *SMALL) == 0
    assert "gmoe_ext[plot]" in capsys.readouterr().out
    assert not (root / "run" / "curves.png").exists()


def test_a_finished_run_is_reported_again_and_more_epochs_continue_it(root):
    flags = ["--data.name", "tiny", "--model.name", "gcn", "--model.hidden_dim", "8", "--resume", "auto"]
    assert train(root, *flags, "--train.epochs", "2") == 0
    assert train(root, *flags, "--train.epochs", "4") == 0
    assert json.loads((root / "run" / "result.json").read_text())["epochs"] == 4
    assert len((root / "run" / "metrics.jsonl").read_text().splitlines()) == 4


def test_other_settings_do_not_continue_a_run(root, capsys):
    flags = ["--data.name", "tiny", "--model.name", "gcn", "--resume", "auto"]
    assert train(root, *flags, *SMALL) == 0
    assert train(root, *flags, *SMALL, "--train.lr", "0.5") == 2
    assert "train.lr: 0.001 in the checkpoint, 0.5 now" in capsys.readouterr().err


def test_a_run_is_continued_from_another_place(root):
    flags = ["--data.name", "tiny", "--model.name", "gcn", "--model.hidden_dim", "8"]
    assert train(root, *flags, "--train.epochs", "2") == 0
    elsewhere = ["--run_dir", str(root / "second"), "--resume", str(root / "run")]
    assert train(root, *flags, "--train.epochs", "3", *elsewhere) == 0
    assert len((root / "second" / "metrics.jsonl").read_text().splitlines()) == 3
    assert train(root, *flags, "--resume", str(root / "nothing")) == 2


def test_starting_from_scratch_keeps_the_earlier_run(root):
    flags = ["--data.name", "tiny", "--model.name", "gcn", *SMALL]
    assert train(root, *flags) == 0
    former = {path: (root / "run" / path).read_bytes() for path in ("metrics.jsonl", "result.json", "config.yaml")}
    assert train(root, *flags, "--seed", "1") == 0
    previous = root / "run" / "previous"
    assert {path: (previous / path).read_bytes() for path in former} == former
    assert (previous / "checkpoints" / "gcn.safetensors").exists()
    assert len((root / "run" / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("recipe", [name for name in recipes.names() if name.startswith("mol")])
def test_every_molecule_recipe_builds_and_steps(root, recipe):
    small = ["--model.hidden_dim", "8", "--model.num_layers", "2", "--dry_run"]
    assert train(root, "--config", recipe, "--data.name", "tinymol", *small) == 0
