"""Flags and recipes: what is read, what is refused, and the flags nobody may rename."""

import dataclasses

import pytest
import yaml

from gmoe_ext.errors import ConfigError
from gmoe_ext.models import option_names
from gmoe_ext.train import recipes
from gmoe_ext.train.config import Config, config_hash, flatten, from_dict
from gmoe_ext.train.parse import build_parser, default_directory, dump, load_recipe, parse

FROZEN = {
    "data": [
        "name",
        "root",
        "setting",
        "split",
        "split_seed",
        "train_per_class",
        "val_per_class",
        "row_normalize",
        "allow_partial",
        "heldout_rate",
        "metric",
        "num_nodes",
    ],
    "model": [
        "name",
        "num_layers",
        "hidden_dim",
        "dropout",
        "norm",
        "num_experts",
        "num_hop1",
        "k",
        "aux_weight",
        "aux_over",
        "combine",
        "scale_hidden",
    ],
    "teacher": ["model", "num_layers", "hidden_dim", "dropout", "norm", "epochs", "lr", "weight_decay", "patience"],
    "student": ["model", "num_layers", "hidden_dim", "dropout", "norm", "num_experts", "k"],
    "train": ["epochs", "batch_size", "lr", "weight_decay", "patience", "eval_every", "checkpoint_s"],
    "": ["run_dir", "seed", "device", "resume", "dry_run", "offline", "config", "print_config", "list"],
}


def test_flags_are_frozen():
    known = {flag.lstrip("-") for action in build_parser()._actions for flag in action.option_strings}
    frozen = {f"{section}.{name}".lstrip(".") for section, names in FROZEN.items() for name in names}
    assert frozen <= known


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.name", "gcn", "--train.epoch", "3"], "unknown flag --train.epoch\n.*did you mean --train.epochs"),
        (["--model.name", "gcn", "--data.lr", "1"], "did you mean --teacher.lr or --train.lr"),
        (["--model.name", "gcn", "--zzz", "1"], "--help lists all"),
        (["--model.name", "gcn", "--train.lr", "fast"], "train.lr: expected a number above 0, got fast"),
        (
            ["--model.name", "gcn", "--train.epochs", "1.5"],
            r"train.epochs: expected a whole number of at least 1 and below 2\*\*63, got 1.5",
        ),
        (
            ["--model.name", "gcn", "--train.epochs", "0"],
            "train.epochs: expected a whole number of at least 1 .*, got 0",
        ),
        (["--model.name", "gcn", "--model.dropout", "1"], r"model.dropout: expected a number in \[0, 1\), got 1"),
        (["--model.name", "gcn", "--data.setting", "ind"], "expected one of 'transductive', 'inductive', got ind"),
        (["--config", "molesl_gcn"], "did you mean molesol_gcn or"),
        (["--model.name", "mlp"], r"model\.name: expected a network on the graph \(gcn, .*\), got 'mlp'"),
        (["--teacher.model", "rbm", "--student.model", "mlp"], "teacher.model: expected a network on the graph"),
        (
            ["--teacher.model", "gcn", "--student.model", "gcn"],
            r"student\.model: expected a graph-free model \(ensemble, mlp, moe, rbm\), got 'gcn'",
        ),
        (["--recipe", "molesol_gcn"], "did you mean --config"),
        (["--config", str(recipes.CONFIGS / "gmoe" / "molesol.yaml")], "several recipes\n.*--list molesol names them"),
        (["--student.model", "mlp"], "student.model is set, but no teacher\n  fix: --teacher.model sage"),
        (["--teacher.model", "sage"], "no model is set for data 'synthetic'\n  fix: pass --config"),
        (["--config", "nowhere/none.yaml"], "no file and no shipped recipe 'nowhere/none.yaml'"),
    ],
)
def test_a_wrong_flag_says_what_was_meant(flags, message):
    with pytest.raises(ConfigError, match=message):
        parse(flags)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {nme: x}", "unknown key 'data.nme'\n.*did you mean data.name"),
        ("dat: {name: x}", "unknown key 'dat.name'\n.*did you mean data.name"),
        ("data: [", "line 1: while parsing a flow node, "),
        ("train: {lr: much}", "train.lr: expected a number above 0, got much"),
    ],
)
def test_a_wrong_recipe_says_what_was_meant(tmp_path, text, message):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        parse(["--config", str(tmp_path / "recipe.yaml")])


def test_flags_win_over_the_recipe_and_the_recipe_over_defaults():
    config = parse(["--config", "molesol_gcn", "--seed", "4", "--train.lr", "1e-7", "--dry_run"])
    assert (config.data.name, config.model.hidden_dim) == ("molesol", 300)
    assert (config.seed, config.train.lr, config.dry_run) == (4, 1e-7, True)


def test_options_of_a_recipe_that_a_flags_model_lacks_are_left_out():
    told = []
    config = parse(
        ["--config", "cora_planetoid_rbm_tran", "--student.model=mlp", "--student.dropout", "0.1"],
        lambda section, line: told.append((section, line)),
    )
    assert config.student.build_args() == {"num_layers": 3, "hidden_dim": 512, "dropout": 0.1}
    assert told == [("student", "mlp has no num_experts, k, input_attention: left out of the recipe")]
    parse(["--config", "cora_planetoid_rbm_tran", "--student.model", "rbm"], lambda *line: told.append(line))
    assert len(told) == 1


@pytest.mark.parametrize("given", [["--student.num_experts=4"], ["--student.num_experts", "4"]])
def test_options_given_by_flag_must_be_those_of_the_model(given):
    flags = ["--config", "cora_planetoid_rbm_tran", "--student.model", "mlp", *given]
    with pytest.raises(
        ConfigError, match=r"student\.num_experts: model 'mlp' has no such option; it has in_dim, hidden"
    ):
        parse(flags)


def test_printed_settings_are_those_that_would_be_used(capsys):
    with pytest.raises(SystemExit):
        parse(["--config", "cora_planetoid_rbm_tran", "--student.model", "mlp", "--print_config"], print)
    student = yaml.safe_load(capsys.readouterr().out)["student"]
    assert (student["model"], student["num_experts"], student["dropout"]) == ("mlp", None, 0.3)


def test_a_flag_may_make_a_mixture_of_a_recipe_a_base_network():
    config = parse(["--config", "molesol_gmoe-gcn", "--model.name", "gcn"])
    assert set(config.model.build_args()) <= set(option_names("gcn"))


def test_a_recipe_must_fit_its_own_model(tmp_path):
    (tmp_path / "recipe.yaml").write_text("model: {name: gcn, k: 2}")
    with pytest.raises(ConfigError, match=r"model\.k: model 'gcn' has no such option"):
        parse(["--config", str(tmp_path / "recipe.yaml")])
    with pytest.raises(ConfigError, match="unknown model 'gnc'"):
        parse(["--config", str(tmp_path / "recipe.yaml"), "--model.name", "gnc"])


def test_without_a_model_the_embedded_default_is_read():
    config = parse(["--seed", "3"])
    assert config.data.name == "synthetic"
    assert config.model.name and config.teacher.model and config.student.model == "rbm"


def test_dumped_settings_are_read_back(tmp_path):
    config = parse(["--config", "molfreesolv_gmoe-gcn", "--train.weight_decay", "1e-9"])
    (tmp_path / "config.yaml").write_text(dump(config))
    assert load_recipe(tmp_path / "config.yaml") == config
    assert from_dict(dataclasses.asdict(config)) == config


def test_the_hash_knows_settings_but_not_places():
    config = Config()
    assert config_hash(dataclasses.replace(config, run_dir="elsewhere", device="cuda")) == config_hash(config)
    assert config_hash(dataclasses.replace(config, seed=1)) != config_hash(config)


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ([], "synthetic-0"),
        (["--data.name", "mine", "--seed", "3"], "mine-3"),
        (["--model.name", "gcn", "--data.name", "mine", "--data.setting", "inductive"], "mine-gcn-ind-0"),
        (["--teacher.model", "sage", "--student.model", "mlp"], "synthetic-sage-mlp-0"),
        (["--config", "cora_cpf_rbm_ind", "--data.root", "data", "--device", "cpu"], "cora_cpf_rbm_ind-0"),
        (["--config", "cora_cpf_rbm_ind", "--data.name", "mine"], "mine-cora_cpf_rbm_ind-0"),
        (["--config", "cora_cpf_rbm_ind", "--data.setting", "transductive"], "cora_cpf_rbm_ind-tran-0"),
    ],
)
def test_a_run_directory_is_named_after_what_runs(flags, name):
    assert default_directory(parse(flags)) == f"runs/{name}"


@pytest.mark.parametrize("base", [[], ["--config", "cora_cpf_rbm_tran"], ["--model.name", "gcn"]])
def test_flags_that_change_the_result_change_the_run_directory(base):
    changes = [["--train.lr", "0.5"], ["--train.lr", "0.25"], ["--seed", "1"], ["--train.precision", "bf16-mixed"]]
    changes += [["--data.split_seed", "4"], ["--data.setting", "inductive"], ["--data.name", "mine"]]
    named = [default_directory(parse([*base, *flags])) for flags in [[], *changes]]
    assert len(set(named)) == len(named)


def test_settings_of_a_run_find_its_directory_again(tmp_path):
    config = parse(["--config", "molesol_gcn", "--train.lr", "0.5"])
    (tmp_path / "config.yaml").write_text(dump(config))
    assert default_directory(load_recipe(tmp_path / "config.yaml")) == default_directory(config)


def test_a_teacher_takes_what_it_does_not_set_from_train():
    config = parse(["--model.name", "gcn", "--teacher.lr", "0.5", "--train.epochs", "7"])
    assert (config.teacher_train().lr, config.teacher_train().epochs) == (0.5, 7)


def test_every_setting_is_a_flag():
    known = {flag.lstrip("-") for action in build_parser()._actions for flag in action.option_strings}
    assert set(flatten(Config())) <= known
