"""The file of first results: nothing in it is lost, what it has is not run again."""

from __future__ import annotations

import json
import shutil

import pytest

from bench.models import first_runs
from bench.models.first_runs import Entry, key_of
from gmoe_ext.train.config import config_hash
from gmoe_ext.train.parse import parse

ONE, TWO = Entry("one"), Entry("two", seeds=(0,))
HASHES = {("one", 0): "now", ("one", 1): "now", ("one", 2): "now", ("two", 0): "now"}


@pytest.fixture(autouse=True)
def two_entries(monkeypatch):
    monkeypatch.setattr(first_runs, "ENTRIES", [ONE, TWO])


def record(recipe, seed, settings="now", **values):
    scores = {"metric": "rmse", "val_best": 1.0, "test_at_best_val": 1.0, "test_best": 1.0, "wall_s": 1.0}
    return {"recipe": recipe, "seed": seed, "config_hash": settings, **scores, **values}


def leave_result(runs, result):
    folder = runs / f"{result['recipe']}-{result['seed']}"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({k: v for k, v in result.items() if k != "recipe"}))


def test_records_without_a_run_folder_stay(tmp_path):
    leave_result(tmp_path / "runs", record("two", 0))
    leave_result(tmp_path / "runs", record("one", 1))
    first = first_runs.update(tmp_path / "runs", tmp_path, HASHES)
    shutil.rmtree(tmp_path / "runs")
    leave_result(tmp_path / "runs", record("one", 0))
    again = first_runs.update(tmp_path / "runs", tmp_path, HASHES)
    assert [key_of(r) for r in first] == [("one", 1), ("two", 0)]
    assert [key_of(r) for r in again] == [("one", 0), ("one", 1), ("two", 0)]
    assert [json.loads(line) for line in (tmp_path / "first_runs.jsonl").read_text().splitlines()] == again


def test_a_new_run_replaces_the_record_of_its_recipe_and_seed():
    old, other, new = record("one", 0, "then"), record("one", 1), record("one", 0, val_best=0.5)
    assert first_runs.merge([old, other], [new], HASHES) == [new, other]


def test_a_forgotten_run_folder_does_not_replace_a_record():
    assert first_runs.merge([record("one", 0)], [record("one", 0, "then")], HASHES) == [record("one", 0)]


def test_recipes_that_are_no_longer_run_keep_their_records():
    assert first_runs.merge([record("gone", 7), record("two", 0)], [], HASHES) == [
        record("two", 0),
        record("gone", 7),
    ]


def test_only_what_has_no_record_under_present_settings_is_run(tmp_path, monkeypatch):
    def fake_run(entry, seed, runs):
        started.append((entry.recipe, seed))
        leave_result(runs, record(entry.recipe, seed, val_best=0.5))

    started = []
    there = [record("one", 0, "then"), record("one", 1), {**record("one", 2), "config_hash": None}]
    (tmp_path / "first_runs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in there))
    monkeypatch.setattr(first_runs, "RESULTS", tmp_path)
    monkeypatch.setattr(first_runs, "settings", lambda: HASHES)
    monkeypatch.setattr(first_runs, "run", fake_run)
    monkeypatch.setattr("sys.argv", ["first_runs", "--jobs", "1", "--runs", str(tmp_path / "runs")])
    first_runs.main()
    lines = [json.loads(line) for line in (tmp_path / "first_runs.jsonl").read_text().splitlines()]
    assert started == [("one", 0), ("two", 0)]
    assert [r["val_best"] for r in lines] == [0.5, 1.0, 1.0, 0.5]


def test_settings_are_those_a_run_would_record(monkeypatch):
    monkeypatch.setattr(first_runs, "ENTRIES", [Entry("molhiv_gcn", seeds=(1,), flags=("--train.epochs", "2"))])
    config = parse(["--config", "molhiv_gcn", "--train.epochs", "2", "--seed", "1", "--run_dir", "somewhere"])
    assert first_runs.settings() == {("molhiv_gcn", 1): config_hash(config)}
