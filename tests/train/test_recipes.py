"""Every shipped recipe has the settings it always had, its published figure, and a run directory of its own."""

import hashlib
import json
from collections import Counter
from functools import cache

import pytest
import torch

from gmoe_ext import models
from gmoe_ext.errors import ConfigError
from gmoe_ext.train import recipes
from gmoe_ext.train.config import fingerprint
from gmoe_ext.train.parse import default_directory, parse, published
from gmoe_ext.train.parse import load_recipe as load
from gmoe_ext.train.tasks.distill import resolve_protocol

GMOE = [name for name in recipes.names() if name.startswith("mol")]
RBM = [name for name in recipes.names() if name not in GMOE]
# Of all settings of all recipes, by data set. A setting that is added or changed on purpose changes it.
SETTINGS = {
    "amazon_computers": "6a39e5f4e8c8ef43",
    "amazon_photo": "91ea6298255b1f59",
    "citeseer_cpf": "24824a777b5e2220",
    "citeseer_planetoid": "440b4d34b2906f3b",
    "coauthor_cs": "b267406bb4286244",
    "coauthor_physics": "59b57b82d623a850",
    "cora_cpf": "6391df4aafb16918",
    "cora_planetoid": "fbbdb753266ebffa",
    "molbbbp": "f41d57ab521cff91",
    "molesol": "8db3d9580c0a5a8c",
    "molfreesolv": "3a88ed90400bb0cd",
    "molhiv": "1c9ce6c3efc324bc",
    "moltox21": "76d1821db4de2f90",
    "moltoxcast": "8183136e13588ee9",
}


def test_all_recipes_are_there():
    assert len(GMOE) == 6 * 6
    assert Counter(name.rsplit("_", 2)[1] for name in RBM) == dict.fromkeys(["sage", "glnn", "krd", "moe", "rbm"], 16)


load_recipe = cache(load)  # the tests here change no configuration


@pytest.mark.parametrize("dataset", SETTINGS)
def test_every_recipe_has_the_settings_it_always_had(dataset):
    settings = {name: fingerprint(load_recipe(name)) for name in recipes.names() if name.startswith(f"{dataset}_")}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    assert digest[:16] == SETTINGS[dataset]


def test_no_two_recipes_share_a_run_directory():
    names = [*recipes.names(), recipes.DEFAULT]
    assert len({default_directory(load_recipe(name)) for name in names}) == len(names)


def test_a_recipe_builds_on_its_blocks(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "published: {paper: RbM, metric: rmse}\n"
        "shared: {train: {lr: 1.0, epochs: 5}}\n"
        "blocks: {slow: {train: {lr: 0.1}}, slower: {train: {lr: 0.01}, data: {name: x}}}\n"
        "recipes:\n"
        "  tiny_gcn: {published: {table: 1, mean: 1.5, std: 0.25, how: a guess}, from: [slow, slower]}\n"
        "  tiny_gin: {from: [slow], train: {epochs: 7}}\n"
    )
    gcn, gin = recipes._read(path).values()
    assert gcn.settings == {"train": {"lr": 0.01, "epochs": 5}, "data": {"name": "x"}}
    assert gin.settings == {"train": {"lr": 0.1, "epochs": 7}}
    assert str(gcn.published) == "rmse 1.500 +- 0.250 (RbM, table 1, a guess)" and gin.published is None


def test_a_key_given_twice_is_refused(tmp_path):
    (tmp_path / "twice.yaml").write_text("shared:\n  train: {lr: 1.0}\n  train: {epochs: 5}\n")
    with pytest.raises(ConfigError, match="key 'train' is given twice"):
        recipes._read(tmp_path / "twice.yaml")


def test_recipes_are_listed_with_their_figures(capsys):
    with pytest.raises(SystemExit) as done:
        parse(["--list", "cora_planetoid_rbm"])
    assert not done.value.code
    assert capsys.readouterr().out.splitlines() == [
        "cora_planetoid_rbm_ind   accuracy 77.44 +- 1.08 (RbM, table 1, best test epoch)",
        "cora_planetoid_rbm_tran  accuracy 84.86 +- 0.46 (RbM, table 1, best test epoch)",
    ]
    assert len(recipes.listing()) == 116
    assert recipes.listing("nothing") == ["no shipped recipe has 'nothing' in its name"]


def test_a_figure_is_compared_with_the_same_data_and_models_alone():
    figure = recipes.Published("GMoE", "rmse", 2, 1.087, 0.043)
    assert published(parse(["--config", "molesol_gmoe-gcn", "--train.lr", "0.5"])) == figure
    assert published(parse(["--config", "molesol_gmoe-gcn", "--data.name", "mine"])) is None
    assert published(parse(["--config", "molesol_gmoe-gcn", "--model.name", "gcn"])) is None
    assert published(parse(["--model.name", "gcn"])) is None


def test_figures_of_one_paper_have_its_tables():
    tables = {
        name: found.published and found.published.table for name in recipes.names() if (found := recipes.find(name))
    }
    assert all(tables[name] == (4 if "_moe_" in name else 1) for name in RBM if tables[name])
    assert all(tables[name] == (2 if "sol" in name else 3 if "gin" in name else 1) for name in GMOE if tables[name])
    assert [name for name in RBM if not tables[name]] == [
        name
        for name in RBM
        if "_cpf_" in name or name.startswith("amazon_computers_krd") or ("coauthor" in name and "_glnn_" in name)
    ]


@pytest.mark.parametrize("name", RBM)
def test_a_recipe_of_rbm_is_what_its_name_says(name):
    dataset, method, setting = name.rsplit("_", 2)
    config = resolve_protocol(load_recipe(name), "per_class")
    assert config.data.name == dataset
    assert (config.data.setting == "inductive") == (setting == "ind")
    if method == "sage":
        assert config.model.name == "sage" and config.student.model is None
        return
    assert config.student.model == {"glnn": "mlp", "krd": "mlp"}.get(method, method)
    assert config.train.batch_size == 0 and config.teacher.model == "sage"
    assert config.distill.positions == (method in ("rbm", "moe"))
    assert config.distill.reliable == (method != "glnn")
    with torch.device("meta"):
        models.build(config.student.model, in_dim=10, out_dim=3, **config.student.build_args())


@pytest.mark.parametrize("name", GMOE)
def test_a_recipe_of_gmoe_is_what_its_name_says(name):
    dataset, model = name.removesuffix("_sparse").split("_")
    config = load_recipe(name)
    assert (config.data.name, config.model.name) == (dataset, model)
    assert (config.model.norm == "all_nodes") == ("gmoe" in model and not name.endswith("_sparse"))


@pytest.mark.parametrize(("protocol", "k"), [("paper", 3), ("released_code", 4)])
def test_a_vanilla_mixture_has_eight_experts_and_the_protocol_s_k(protocol, k):
    for name in (name for name in RBM if "_moe_" in name):
        config = parse(["--config", name, "--distill.protocol", protocol])
        student = resolve_protocol(config, "per_class").student
        assert (student.num_experts, student.k, student.variant) == (8, k, protocol)


def test_all_methods_of_a_table_learn_from_the_same_teacher():
    for name in RBM:
        dataset, method, setting = name.rsplit("_", 2)
        if method in ("moe", "glnn", "krd"):
            ours, reference = load_recipe(name), load_recipe(f"{dataset}_rbm_{setting}")
            assert ours.teacher_train().lr == reference.teacher_train().lr
            assert ours.teacher == reference.teacher
