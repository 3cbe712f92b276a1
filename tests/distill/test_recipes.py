"""Every RbM recipe parses, names its published figure and builds its models."""

import pytest
import torch

from gmoe_ext import models
from gmoe_ext.train import parse
from gmoe_ext.train.tasks.distill import resolve_protocol

RECIPES = sorted((parse.RECIPES / "rbm").glob("*.yaml"))
FIRST_WORDS = {"rbm": "# RbM", "moe": "# Vanilla MoE", "glnn": "# GLNN", "krd": "# KRD", "sage": "# GraphSAGE"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe(path):
    dataset, method, setting = path.stem.rsplit("_", 2)
    first = path.read_text().splitlines()[0]
    config = resolve_protocol(parse.load_recipe(path), "per_class")
    assert config.data.name == dataset
    assert (config.data.setting == "inductive") == (setting == "ind")
    assert first.startswith(FIRST_WORDS[method])
    if method == "sage":
        assert config.model.name == "sage" and config.student.model is None
        return
    assert config.train.batch_size == 0 and config.teacher.model == "sage"
    assert config.distill.positions == (method in ("rbm", "moe"))
    assert config.distill.reliable == (method != "glnn")
    with torch.device("meta"):
        models.build(config.student.model, in_dim=10, out_dim=3, **config.student.build_args())


def test_eight_data_sets_five_methods_two_settings():
    assert len(RECIPES) == 8 * 5 * 2


@pytest.mark.parametrize(("protocol", "k"), [("paper", 3), ("released_code", 4)])
def test_a_vanilla_mixture_has_eight_experts_and_the_protocol_s_k(protocol, k):
    for path in (path for path in RECIPES if "_moe_" in path.stem):
        config = parse.parse(["--config", str(path), "--distill.protocol", protocol])
        student = resolve_protocol(config, "per_class").student
        assert (student.num_experts, student.k, student.variant) == (8, k, protocol)


def test_all_methods_of_a_table_learn_from_the_same_teacher():
    for path in RECIPES:
        dataset, method, setting = path.stem.rsplit("_", 2)
        if method in ("moe", "glnn", "krd"):
            reference = parse.load_recipe(path.with_name(f"{dataset}_rbm_{setting}.yaml"))
            assert parse.load_recipe(path).teacher_train().lr == reference.teacher_train().lr
            assert parse.load_recipe(path).teacher == reference.teacher
