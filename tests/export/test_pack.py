"""A packed student predicts what its model predicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from gmoe_ext import models
from gmoe_ext.errors import ConfigError
from gmoe_ext.export import Rows, compare, pack, random_rows
from gmoe_ext.export.graphs import PlainStudent
from gmoe_ext.export.pack import unpack
from gmoe_ext.models.registry import Model
from gmoe_ext.nn import LinearExperts
from gmoe_ext.runtime import PackedStudent


def trained(name: str, seed: int = 0, **options: Any) -> Model:
    """Return a model in evaluation mode whose learnt values all differ from their initial ones."""
    generator = torch.Generator().manual_seed(seed)
    model = models.build(name, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for norm in model.modules():
            if isinstance(norm, torch.nn.BatchNorm1d):
                norm.running_mean.normal_(generator=generator)
                norm.running_var.uniform_(0.3, 3.0, generator=generator)
    return model


def assert_parity(model: Model, path: Path, in_dim: int) -> None:
    x = torch.randn(257, in_dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(x).logits.numpy()
    logits = PackedStudent.load(path).predict(x.numpy())
    scale = max(1.0, float(np.abs(expected).max()))
    assert np.abs(logits - expected).max() <= 1e-5 * scale
    assert np.array_equal(logits.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("input_attention", [True, False])
@pytest.mark.parametrize(("num_experts", "k"), [(2, 1), (4, 1), (4, 2), (4, 3), (9, 8)])
def test_rbm_parity(
    tmp_path: Path, num_layers: int, norm: str, input_attention: bool, num_experts: int, k: int
) -> None:
    options = dict(in_dim=21, hidden_dim=34, out_dim=6, num_layers=num_layers, norm=norm, num_experts=num_experts, k=k)
    model = trained("rbm", input_attention=input_attention, **options)
    assert_parity(model, pack(model, tmp_path / "s.safetensors"), 21)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_mlp_parity(tmp_path: Path, num_layers: int, norm: str) -> None:
    model = trained("mlp", in_dim=21, hidden_dim=34, out_dim=6, num_layers=num_layers, norm=norm)
    assert_parity(model, pack(model, tmp_path / "s.safetensors"), 21)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize(("variant", "norm"), [("paper", "none"), ("paper", "batch"), ("released_code", "none")])
@pytest.mark.parametrize(("num_experts", "k"), [(2, 1), (4, 2), (8, 3), (3, 3)])
def test_moe_parity(tmp_path: Path, num_layers: int, variant: str, norm: str, num_experts: int, k: int) -> None:
    options = dict(in_dim=21, hidden_dim=34, out_dim=6, num_layers=num_layers, norm=norm, num_experts=num_experts, k=k)
    model = trained("moe", variant=variant, **options)
    path = pack(model, tmp_path / "s.safetensors")
    assert_parity(model, path, 21)
    gates = "all" if variant == "released_code" else "chosen"
    info = PackedStudent.load(path).info()
    routers = [(layer["router"], layer["router_dim"], layer["gates"]) for layer in info["layers"]]
    assert routers == [("projected", 34, gates)] * num_layers


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("num_members", [1, 3, 8])
def test_ensemble_parity(tmp_path: Path, num_layers: int, norm: str, num_members: int) -> None:
    options = dict(in_dim=21, hidden_dim=34, out_dim=6, num_layers=num_layers, norm=norm)
    model = trained("ensemble", num_members=num_members, **options)
    path = pack(model, tmp_path / "s.safetensors")
    if num_members > 1:
        assert_parity(model, path, 21)
    info = PackedStudent.load(path).info()
    assert info["members"] == num_members and len(info["layers"]) == num_members * num_layers


def test_an_ensemble_s_probabilities_are_the_mean_of_its_members(tmp_path: Path) -> None:
    model, x = trained("ensemble", in_dim=8, hidden_dim=16, out_dim=4, num_members=3), torch.randn(40, 8)
    mean = torch.stack([member(x).logits.softmax(1) for member in model.members]).mean(0)
    student = PackedStudent.load(pack(model, tmp_path / "s.safetensors"))
    np.testing.assert_allclose(student.predict_proba(x.numpy()), mean.detach(), atol=1e-6)
    with torch.no_grad():
        for sign, member in zip((1, 1, -1), model.members, strict=True):
            member.layers[-1].bias.copy_(sign * torch.tensor([300.0, 0, -300.0, 0]))
    assert_parity(model, pack(model, tmp_path / "s.safetensors"), 8)  # a hundred apart, and still finite


def test_a_temperature_is_the_length_of_the_memories(tmp_path: Path) -> None:
    model = trained("moe", in_dim=8, hidden_dim=16, out_dim=4, num_experts=4, k=2, variant="released_code")
    with torch.no_grad():
        model.layers[0].router.log_temperature.fill_(9.0)  # beyond 100, where the model stops
    path = pack(model, tmp_path / "s.safetensors")
    assert_parity(model, path, 8)
    tensors = load_file(path)
    np.testing.assert_allclose(np.linalg.norm(tensors["layers.0.memory"], axis=1), 100, rtol=1e-5)
    assert tensors["layers.0.router.weight"].shape == (1, 8, 16)


def test_a_moe_in_pretraining_is_its_first_expert(tmp_path: Path) -> None:
    model = trained("moe", in_dim=8, hidden_dim=16, out_dim=4, num_layers=2, num_experts=4, k=2)
    model.set_pretraining(True)
    path = pack(model, tmp_path / "s.safetensors")
    assert_parity(model, path, 8)
    assert [layer["router"] for layer in PackedStudent.load(path).info()["layers"]] == ["none", "none"]


def test_wide_rbm_parity(tmp_path: Path) -> None:
    model = trained("rbm", in_dim=300, hidden_dim=600, out_dim=50, num_layers=2, num_experts=5, k=3)
    assert_parity(model, pack(model, tmp_path / "s.safetensors"), 300)


def test_a_student_in_pretraining_is_its_first_expert(tmp_path: Path) -> None:
    model = trained("rbm", in_dim=8, hidden_dim=16, out_dim=4, num_layers=2, num_experts=4, k=2)
    model.set_pretraining(True)
    path = pack(model, tmp_path / "s.safetensors")
    assert_parity(model, path, 8)
    assert [layer["experts"] for layer in PackedStudent.load(path).info()["layers"]] == [1, 1]


def test_large_log_scales_stop_where_the_model_stops(tmp_path: Path) -> None:
    model = trained("rbm", in_dim=8, hidden_dim=16, out_dim=4, num_layers=1, num_experts=4, k=2)
    with torch.no_grad():
        model.layers[0].log_scale.fill_(9.0)
        model.layers[0].log_attention.fill_(9.0)
    assert_parity(model, pack(model, tmp_path / "s.safetensors"), 8)


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    model = trained("rbm", in_dim=8, hidden_dim=16, out_dim=4, num_layers=2, num_experts=3, k=2)
    path = pack(model, tmp_path / "s.safetensors", class_names=["\u00e9", '"quoted"', "back\\slash", ""])
    tensors = load_file(path)
    assert tensors["layers.0.weight"].shape == (3, 8, 16) and tensors["layers.1.memory"].shape == (3, 16)
    np.testing.assert_allclose(np.linalg.norm(tensors["layers.0.memory"], axis=1), 1, atol=1e-6)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    assert (8 + length) % 64 == 0
    header = json.loads(path.read_bytes()[8 : 8 + length])
    assert json.loads(header["__metadata__"]["gmoe_ext.student"])["format_version"] == 1
    assert PackedStudent.load(path).classes == ["\u00e9", '"quoted"', "back\\slash", ""]


EXPERTS = {
    "rbm": dict(num_experts=4, k=2, input_attention=False),
    "moe": dict(num_experts=4, k=2),
    "mlp": {},
    "ensemble": dict(num_members=2),
}


def with_exact_weights(name: str, dtype: str, out_dim: int = 6) -> Model:
    """A model whose weights ``dtype`` holds without rounding."""
    model = models.build(name, in_dim=21, hidden_dim=34, out_dim=out_dim, num_layers=3, **EXPERTS[name]).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | LinearExperts):
            if dtype == "bfloat16":
                module.weight.data = module.weight.bfloat16().float()
            else:
                module.weight.data = torch.randint(-127, 128, module.weight.shape) / 2.0**9
                module.weight.data[..., 0, :] = 127 / 2.0**9  # every input's scale is 2^-9
    return model


@pytest.mark.parametrize("name", EXPERTS)
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("out_dim", [1, 6, 15, 16, 17, 97, 257])
def test_weights_that_fit_answer_as_in_float32(tmp_path: Path, name: str, dtype: str, out_dim: int) -> None:
    model, x = with_exact_weights(name, dtype, out_dim), torch.randn(70, 21).numpy()
    wide = PackedStudent.load(pack(model, tmp_path / "wide"))
    narrow = PackedStudent.load(pack(model, tmp_path / "narrow", dtype=dtype))
    assert np.array_equal(narrow.predict(x), wide.predict(x))
    assert np.array_equal(narrow.predict(x[:2]), wide.predict(x[:2]))
    assert narrow.num_bytes < wide.num_bytes


@pytest.mark.parametrize(("dtype", "step"), [("bfloat16", 2.0**-8), ("int8", 1 / 127)])
@pytest.mark.parametrize("name", ["rbm", "moe"])
def test_rounded_weights_are_near(tmp_path: Path, dtype: str, step: float, name: str) -> None:
    model = trained(name, in_dim=64, hidden_dim=128, out_dim=10, num_layers=2, num_experts=3, k=3, norm="batch")
    x = torch.randn(100, 64)
    student = PackedStudent.load(pack(model, tmp_path / "s", dtype=dtype))
    found = compare(model, student, Rows(x.numpy(), labels=model(x).logits.argmax(1).numpy()))
    assert 0 < found.largest_difference < 2 * step  # a weight is off by half a step of its row's largest
    assert found.same_class == found.accuracy > 0.95 and found.model_accuracy == 1


def test_int8_rows_are_scaled_by_their_largest_weight(tmp_path: Path) -> None:
    model = trained("mlp", in_dim=5, hidden_dim=8, out_dim=4, num_layers=1)
    model.layers[0].weight.data[:, 2] = 0  # a feature without weight
    tensors = load_file(pack(model, tmp_path / "s", dtype="int8"))
    q, scale = tensors["layers.0.weight"], tensors["layers.0.weight_scale"]
    weight = model.layers[0].weight.detach().numpy().T
    assert q.dtype == np.int8 and np.abs(q).max(2).tolist() == [[127, 127, 0, 127, 127]]
    np.testing.assert_allclose(scale[0], np.abs(weight).max(1) / 127, rtol=1e-6)
    assert (np.abs(q[0] * scale[0][:, None] - weight) <= scale[0][:, None] * 0.5001).all()


def test_every_file_names_its_version_and_the_type_of_its_weights(tmp_path: Path) -> None:
    for model in (
        trained("mlp", in_dim=7, hidden_dim=5, out_dim=3),
        trained("moe", in_dim=7, hidden_dim=5, out_dim=3, num_experts=2, k=1),
    ):
        for dtype in ("float32", "bfloat16", "int8"):
            info = PackedStudent.load(pack(model, tmp_path / dtype, dtype=dtype)).info()
            assert info["format_version"] == 1 and info["members"] == 1
            assert [layer["weights"] for layer in info["layers"]] == [dtype] * 2


def test_comparison_prepares_rows_as_the_file_does(tmp_path: Path) -> None:
    model, table, x = trained("mlp", in_dim=8, hidden_dim=16, out_dim=4), torch.randn(9, 3), torch.rand(20, 5).numpy()
    x[3], nodes = 0, np.arange(20) % 10 - 1
    for normalize in ("none", "row_l1", "row_l2"):
        student = PackedStudent.load(pack(model, tmp_path / "s", positions=table, normalize=normalize))
        assert compare(model, student, Rows(x, nodes), table).largest_difference < 1e-5
        assert compare(model, student, random_rows(student)).largest_difference < 1e-5


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    model = trained("rbm", in_dim=8, hidden_dim=16, out_dim=4, num_layers=2, num_experts=3, k=2)
    assert pack(model, tmp_path / "a").read_bytes() == pack(model, tmp_path / "b").read_bytes()


def test_packing_does_not_change_the_model(tmp_path: Path) -> None:
    model = trained("rbm", in_dim=8, hidden_dim=16, out_dim=4, num_layers=2, num_experts=3, k=2, norm="batch")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pack(model, tmp_path / "s.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained("mlp", in_dim=8, hidden_dim=16, out_dim=4)
    path = pack(model, tmp_path / "s.safetensors")
    before = path.read_bytes()

    def no_room(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_room)
    with pytest.raises(OSError, match="No space left"):
        pack(trained("mlp", 1, in_dim=8, hidden_dim=16, out_dim=4), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_file_in_use_may_be_replaced(tmp_path: Path) -> None:
    first, second = (trained("mlp", seed, in_dim=8, hidden_dim=16, out_dim=4) for seed in (0, 1))
    path, x = tmp_path / "s.safetensors", np.ones((2, 8), np.float32)
    student = PackedStudent.load(pack(first, path))
    before = student.predict(x)
    pack(second, path)
    assert np.array_equal(student.predict(x), before)
    assert not np.array_equal(PackedStudent.load(path).predict(x), before)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(class_names=["a"]), "expected 4 'class_names'"),
        (dict(dtype="float16"), "expected 'dtype' to be one of float32, bfloat16, int8"),
        (dict(normalize="l7"), "expected 'normalize' to be one of none, row_l1, row_l2"),
        (dict(positions=torch.zeros(3)), r"expected 'positions' of shape \[N, P\]"),
        (dict(positions=torch.zeros(3, 9)), "positions of 9 columns do not fit"),
        (dict(positions=torch.full((3, 2), torch.nan)), "'positions' contains NaN"),
        (dict(positions=torch.zeros(3, 2), position_dim=3), "expected 'position_dim' to be the table's 2"),
    ],
)
def test_refused_options(tmp_path: Path, options: dict[str, Any], text: str) -> None:
    model = trained("mlp", in_dim=8, hidden_dim=16, out_dim=4)
    with pytest.raises(ConfigError, match=text):
        pack(model, tmp_path / "s.safetensors", **options)
    assert not list(tmp_path.iterdir())


def test_a_misspelt_keyword_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="clas_names"):
        pack(trained("mlp", in_dim=8, hidden_dim=16, out_dim=4), tmp_path / "s", clas_names=["a"])


def test_refused_models(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="LayerNorm between layers does not fold"):
        pack(trained("mlp", in_dim=8, hidden_dim=16, out_dim=4, norm="layer"), tmp_path / "s")
    with pytest.raises(ConfigError, match="expected a student of kind rbm, moe, mlp, ensemble, got 'gcn'"):
        pack(models.build("gcn", in_dim=8, hidden_dim=16, out_dim=4, num_layers=2), tmp_path / "s")
    diverged = trained("rbm", in_dim=8, hidden_dim=16, out_dim=4, num_experts=3, k=2)
    with torch.no_grad():
        diverged.layers[1].experts.weight[0, 0, 0] = torch.inf
    with pytest.raises(ConfigError, match=r"'layers.1.weight' contains NaN or infinite values"):
        pack(diverged, tmp_path / "s")
    released = dict(num_experts=3, k=2, norm="batch", variant="released_code")
    with pytest.raises(ConfigError, match="does not fold into experts whose gates sum to less than 1"):
        pack(trained("moe", in_dim=8, hidden_dim=16, out_dim=4, **released), tmp_path / "s")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("name", EXPERTS)
def test_an_unpacked_student_has_the_weights_of_the_file(tmp_path: Path, dtype: str, name: str) -> None:
    model = trained(name, in_dim=21, hidden_dim=34, out_dim=6, num_layers=3, norm="batch", **EXPERTS[name])
    content = dict(positions=torch.randn(30, 5), class_names=list("abcdef"), normalize="row_l1", dtype=dtype)
    path = pack(model, tmp_path / "s.safetensors", **content)
    student, x, nodes = unpack(path), torch.rand(40, 16), torch.arange(40) % 31 - 1
    expected = PackedStudent.load(path).predict(x.numpy(), nodes.numpy())
    np.testing.assert_allclose(PlainStudent(student)(x, nodes), expected, atol=1e-5)
    assert (student.name, student.class_names, student.position_dim) == (name, list("abcdef"), 5)
