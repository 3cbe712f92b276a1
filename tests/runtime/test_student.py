"""What a packed student promises its callers."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from gmoe_ext import models, ops
from gmoe_ext.errors import GraphIndexError
from gmoe_ext.export import pack
from gmoe_ext.models.registry import Model
from gmoe_ext.runtime import PackedStudent


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 31, 32, 33, 257, 300])
def test_any_number_of_rows(student_file: Path, model: Model, rows: torch.Tensor, count: int) -> None:
    logits = PackedStudent.load(student_file).predict(rows[:count].numpy())
    assert logits.shape == (count, 7) and logits.dtype == np.float32
    np.testing.assert_allclose(logits, model(rows[:count]).logits.detach(), atol=1e-5, rtol=0)


def test_an_answer_does_not_depend_on_the_batch(student_file: Path, rows: torch.Tensor) -> None:
    student, x = PackedStudent.load(student_file), rows.numpy()
    alone = np.concatenate([student.predict(x[i : i + 1]) for i in range(len(x))])
    assert np.array_equal(student.predict(x), alone)
    assert np.array_equal(student.predict(x[7:100]), alone[7:100])


@pytest.mark.parametrize("out_dim", [1, 2, 7, 15, 16, 17, 33, 95, 96, 97, 256, 257, 273])
def test_every_width_of_output(tmp_path: Path, out_dim: int) -> None:
    model = models.build("rbm", in_dim=19, hidden_dim=out_dim, out_dim=out_dim, num_layers=2, num_experts=3, k=2).eval()
    student, x = PackedStudent.load(pack(model, tmp_path / "s.safetensors")), torch.randn(40, 19)
    logits = student.predict(x.numpy())
    np.testing.assert_allclose(logits, model(x).logits.detach(), atol=1e-5, rtol=1e-5)
    assert np.array_equal(logits[:1], student.predict(x[:1].numpy()))


KINDS = {
    "rbm": dict(num_experts=6, k=3),
    "moe": dict(num_experts=6, k=3),
    "moe, released code": dict(num_experts=6, k=3, variant="released_code"),
    "ensemble": dict(num_members=3),
}


def packed(kind: str, path: Path, **options) -> tuple[Model, PackedStudent]:
    torch.manual_seed(0)
    model = models.build(kind.split(",")[0], **KINDS[kind], **options).eval()
    return model, PackedStudent.load(pack(model, path))


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_does_not_depend_on_the_threads(tmp_path: Path, kind: str) -> None:
    _, student = packed(kind, tmp_path / "s", in_dim=128, hidden_dim=128, out_dim=16, num_layers=3)
    x = np.random.default_rng(0).standard_normal((2000, 128), np.float32)
    answers = []
    for threads in (1, 2, 5):
        student.num_threads = threads
        routing = () if kind == "ensemble" else student.route(x, layer=1)
        answers.append((student.predict(x), *student.top_classes(x, 3), *routing))
    for answer in answers[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(answers[0], answer, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_answers_single_and_sparse_rows_alike(tmp_path: Path, kind: str) -> None:
    model, student = packed(kind, tmp_path / "s", in_dim=24, hidden_dim=40, out_dim=7, num_layers=2)
    x = torch.randn(60, 24) * (torch.rand(60, 24) < 0.3)
    logits = student.predict(x.numpy())
    np.testing.assert_allclose(logits, model(x).logits.detach(), atol=1e-5)
    assert np.array_equal(logits, np.concatenate([student.predict(x[i : i + 1].numpy()) for i in range(60)]))
    sparse = pytest.importorskip("scipy.sparse")
    for count in (1, 60):
        again = student.predict(sparse.csr_array(x[:count].numpy()))
        np.testing.assert_allclose(again, logits[:count], atol=1e-5)


@pytest.mark.parametrize("kind", ["moe", "moe, released code"])
def test_a_projected_router_routes_like_the_model(tmp_path: Path, kind: str) -> None:
    model, student = packed(kind, tmp_path / "s", in_dim=24, hidden_dim=40, out_dim=7, num_layers=2)
    h = x = torch.randn(50, 24)
    for position, layer in enumerate(model.expert_layers()):
        gate, index = student.route(x.numpy(), layer=position)
        routing = layer.router(h)
        assert np.array_equal(index, routing.index)
        np.testing.assert_allclose(gate, routing.gate.detach(), atol=1e-6)
        h = model.between(position, layer(h)[0])


def test_sixteen_callers_at_once(student_file: Path, rows: torch.Tensor) -> None:
    student, x = PackedStudent.load(student_file), rows.numpy()
    expected = student.predict(x)

    def call(caller: int) -> bool:
        return all(
            np.array_equal(student.predict(x[i : i + n]), expected[i : i + n])
            for i in range(caller, 200, 9)
            for n in (1, 3, 50)
        )

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(call, range(16)))


def test_route_agrees_with_the_operator(student_file: Path, model: Model, rows: torch.Tensor) -> None:
    student, h = PackedStudent.load(student_file), rows
    for position, layer in enumerate(model.expert_layers()):
        gate, index = student.route(rows.numpy(), layer=position)
        expected_gate, expected_index = ops.cosine_topk(h, layer.router.memory, layer.k)
        assert np.array_equal(index, expected_index)
        np.testing.assert_allclose(gate, expected_gate.detach(), atol=1e-6)
        h = model.between(position, layer(h)[0])


def test_probabilities_are_the_softmax_of_the_logits(student_file: Path, rows: torch.Tensor) -> None:
    student = PackedStudent.load(student_file)
    expected = torch.softmax(torch.from_numpy(student.predict(rows.numpy())), dim=1)
    np.testing.assert_allclose(student.predict_proba(rows.numpy()), expected, atol=1e-6)


def test_top_classes_are_the_largest_probabilities(student_file: Path, rows: torch.Tensor) -> None:
    student = PackedStudent.load(student_file)
    expected = torch.from_numpy(student.predict_proba(rows.numpy())).topk(3)
    proba, classes = student.top_classes(rows.numpy(), 3)
    assert np.array_equal(proba, expected.values) and np.array_equal(classes, expected.indices)
    assert np.array_equal(student.top_classes(rows.numpy())[1][:, 0], student.predict(rows.numpy()).argmax(1))
    sparse = pytest.importorskip("scipy.sparse")
    many = sparse.vstack([sparse.csr_array(rows.numpy())] * 15, format="csr")  # more than are answered at once
    assert np.array_equal(student.top_classes(many, 3)[1], np.tile(classes, (15, 1)))
    bad = np.full((1, 24), np.nan, np.float32)
    assert np.isnan(student.top_classes(bad, 2)[0]).all() and student.top_classes(bad, 2)[1].tolist() == [[0, 1]]
    for k in (0, 8):
        with pytest.raises(ValueError, match=rf"expected 'k' in \[1, 7\], got {k}"):
            student.top_classes(rows.numpy(), k)


def test_equal_probabilities_go_to_the_lower_class(tmp_path: Path) -> None:
    model = models.build("mlp", in_dim=4, hidden_dim=8, out_dim=5, num_layers=1).eval()
    torch.nn.init.zeros_(model.layers[0].weight)
    torch.nn.init.zeros_(model.layers[0].bias)
    student = PackedStudent.load(pack(model, tmp_path / "s.safetensors"))
    assert student.top_classes(np.ones((1, 4)), 4)[1].tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x.astype(np.float64),
        lambda x: np.asfortranarray(x),
        lambda x: np.repeat(x, 2, axis=0)[::2],
        lambda x: np.concatenate([x, x], axis=1)[:, :24],
        lambda x: x.astype(">f4"),
        lambda x: x.tolist(),
        lambda x: np.frombuffer(b"0" + x.tobytes(), np.float32, offset=1).reshape(x.shape),
    ],
    ids=["float64", "fortran", "strided rows", "strided columns", "big endian", "lists", "unaligned"],
)
@pytest.mark.parametrize("count", [1, 50])
def test_other_forms_of_the_same_rows(student_file: Path, rows: torch.Tensor, form, count: int) -> None:
    student, x = PackedStudent.load(student_file), rows[:count].numpy()
    assert np.array_equal(student.predict(form(x)), student.predict(x))


def test_integers_and_booleans_are_features(student_file: Path) -> None:
    student, x = PackedStudent.load(student_file), np.random.default_rng(0).integers(0, 2, (10, 24))
    expected = student.predict(x.astype(np.float32))
    for dtype in (np.int64, np.uint8, bool):
        assert np.array_equal(student.predict(x.astype(dtype)), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("count", [1, 60])
def test_bad_values_stay_in_their_row(student_file: Path, rows: torch.Tensor, value: float, count: int) -> None:
    student, x = PackedStudent.load(student_file), rows[:count].numpy().copy()
    expected = student.predict(x)
    x[count // 2, 5] = value
    logits = student.predict(x)
    assert np.isnan(logits[count // 2]).all()
    gate, index = student.route(x)
    assert np.isnan(gate[count // 2]).all() and len(set(index[count // 2])) == 2 and (index < 4).all()
    assert np.isnan(student.predict_proba(x)[count // 2]).all()
    assert np.array_equal(np.delete(logits, count // 2, 0), np.delete(expected, count // 2, 0))


def test_a_zero_row_goes_to_the_first_experts(student_file: Path, model: Model) -> None:
    student, x = PackedStudent.load(student_file), np.zeros((5, 24), np.float32)
    gate, index = student.route(x)
    assert index.tolist() == [[0, 1]] * 5 and (gate == 0.5).all()
    np.testing.assert_allclose(student.predict(x), model(torch.zeros(5, 24)).logits.detach(), atol=1e-5)


def test_info_names_what_is_served(student_file: Path) -> None:
    student = PackedStudent.load(student_file)
    info = student.info()
    assert info["format_version"] == 1 and info["model"] == "rbm" and info["classes"] == list("abcdefg")
    assert [(layer["in"], layer["out"], layer["experts"], layer["k"]) for layer in info["layers"]] == [
        (24, 40, 4, 2),
        (40, 40, 4, 2),
        (40, 7, 4, 2),
    ]
    assert student.num_bytes == info["num_bytes"] == student_file.stat().st_size
    assert student.classes == list("abcdefg") and "student.safetensors" in repr(student)


@pytest.mark.parametrize(
    ("x", "error", "text"),
    [
        (np.zeros((2, 23), np.float32), ValueError, r"expected 'x' of shape \[N, 24\], got \[2, 23\]"),
        (np.zeros(24, np.float32), ValueError, r"got \[24\]; pass x\[None\] for one row"),
        (np.zeros((2, 24), complex), TypeError, "expected 'x' of real numbers, got dtype complex128"),
        (np.array([["a"] * 24]), TypeError, "got dtype <U1"),
        (np.zeros((2, 24), object), TypeError, "got dtype object"),
        (None, TypeError, "got dtype object"),
    ],
)
def test_refused_rows(student_file: Path, x, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        PackedStudent.load(student_file).predict(x)


def test_refused_layers_and_threads(student_file: Path, tmp_path: Path, rows: torch.Tensor) -> None:
    student = PackedStudent.load(student_file)
    for layer in (-1, 3):
        with pytest.raises(ValueError, match=r"expected 'layer' in \[0, 3\)"):
            student.route(rows.numpy(), layer=layer)
    for threads in (0, -1, 1025):
        with pytest.raises(ValueError, match="expected 1 to 1024"):
            student.num_threads = threads
    mlp = models.build("mlp", in_dim=24, hidden_dim=8, out_dim=3).eval()
    with pytest.raises(ValueError, match="has one expert and no router"):
        PackedStudent.load(pack(mlp, tmp_path / "mlp.safetensors")).route(rows.numpy())


def test_sparse_rows_give_the_dense_answers(student_file: Path) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    student = PackedStudent.load(student_file)
    x = sparse.random(120, 24, density=0.2, format="csr", dtype=np.float32, random_state=0)
    for count in (0, 1, 3, 120):
        np.testing.assert_allclose(student.predict(x[:count]), student.predict(x[:count].toarray()), atol=1e-5)
    with pytest.raises(TypeError, match=r"call x\.tocsr"):
        student.predict(x.tocsc())
    broken = x.copy()
    broken.indices[3] = 24
    with pytest.raises(ValueError, match=r"x.indices leave \[0, 24\)"):
        student.predict(broken)
    doubled = sparse.csr_array((np.ones(2, np.float32), np.array([3, 3]), np.array([0, 2])), shape=(1, 24))
    with pytest.raises(ValueError, match=r"x\.sum_duplicates\(\)"):
        student.predict(doubled)


def test_positions_come_from_the_table(tmp_path: Path) -> None:
    model = models.build("rbm", in_dim=10, hidden_dim=20, out_dim=3, num_layers=2, num_experts=3, k=2).eval()
    table, x = torch.randn(50, 4), torch.rand(9, 6)
    student = PackedStudent.load(pack(model, tmp_path / "s.safetensors", positions=table, normalize="row_l1"))
    nodes = np.array([3, 49, 0, -1, 7, 7, 12, -1, 1])
    place = torch.where(torch.from_numpy(nodes)[:, None] < 0, torch.zeros(()), table[np.maximum(nodes, 0)])
    expected = model(torch.cat([x / x.sum(1, keepdim=True), place], 1)).logits.detach()
    np.testing.assert_allclose(student.predict(x.numpy(), nodes), expected, atol=1e-5)
    np.testing.assert_allclose(student.predict(x[3:4].numpy(), nodes[3:4]), expected[3:4], atol=1e-5)
    np.testing.assert_allclose(student.predict(torch.cat([x, place], 1).numpy()), expected, atol=1e-5)
    sparse = pytest.importorskip("scipy.sparse")
    np.testing.assert_allclose(student.predict(sparse.csr_array(x.numpy()), nodes), expected, atol=1e-5)

    with pytest.raises(ValueError, match="pass 'nodes'"):
        student.predict(x.numpy())
    with pytest.raises(ValueError, match=r"expected 'nodes' of shape \[9\], got \[2\]"):
        student.predict(x.numpy(), nodes[:2])
    with pytest.raises(TypeError, match="expected 'nodes' of integers"):
        student.predict(x.numpy(), nodes.astype(float))
    for bad in (50, -2, 1 << 40):
        nodes[5] = bad
        with pytest.raises(GraphIndexError) as caught:
            student.predict(x.numpy(), nodes)
        assert (caught.value.argument, caught.value.position, caught.value.value) == ("nodes", 5, bad)
    for bad in (1 << 63, (1 << 64) - 1):  # the last would wrap to -1, the unknown node
        unsigned = np.array([3, 49, 0, 1, 7, bad, 12, 2, 1], np.uint64)
        for given in (unsigned, unsigned.astype(">u8")):
            with pytest.raises(GraphIndexError) as caught:
                student.predict(x.numpy(), given)
            assert (caught.value.position, caught.value.value, caught.value.bound) == (5, bad, 50)


@pytest.mark.parametrize("kind", ["nodes", "indptr"])
def test_integers_that_change_during_a_call_are_read_once(tmp_path: Path, kind: str) -> None:
    """Another thread writes a bad index between the check and the use; a read of it would leave the table."""
    program = """
import sys, threading, time, numpy as np, scipy.sparse as sparse
from gmoe_ext.errors import GraphIndexError
from gmoe_ext.runtime import PackedStudent
student, kind, stop = PackedStudent.load(sys.argv[1]), sys.argv[2], threading.Event()
x, nodes = np.ones((100000, 6), np.float32), np.zeros(100000, np.int64)
rows = sparse.csr_array(x)
rows.indptr = rows.indptr.astype(np.int64)
changed, far = (nodes, 1 << 40) if kind == "nodes" else (rows.indptr[1:-1], 1 << 30)
good, asked = changed.copy(), (x, nodes) if kind == "nodes" else (rows, nodes)
def write():
    while not stop.is_set():
        changed[:] = far
        changed[:] = good
        time.sleep(1e-3)
threading.Thread(target=write, daemon=True).start()
for _ in range(30):
    try:
        assert np.isfinite(student.predict(*asked)).all()
    except (GraphIndexError, ValueError):
        pass
stop.set()
"""
    pytest.importorskip("scipy")
    model = models.build("mlp", in_dim=10, hidden_dim=64, out_dim=3, num_layers=2).eval()
    path = pack(model, tmp_path / "s.safetensors", positions=torch.randn(50, 4))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, str(path), kind]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("rows", [1, 3000])
def test_an_interpreter_exits_while_threads_predict(student_file: Path, rows: int) -> None:
    program = (
        "import os, sys, threading, time, numpy as np; from gmoe_ext.runtime import PackedStudent\n"
        "student, x = PackedStudent.load(sys.argv[1]), np.ones((int(sys.argv[2]), 24), np.float32)\n"
        "def work():\n"
        "    while True: student.predict(x)\n"
        "for _ in range(3): threading.Thread(target=work, daemon=True).start()\n"
        "time.sleep(0.05)\n"
        "child = os.fork()  # its copies of the calls that run never end\n"
        "if child: sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(3):
        command = [sys.executable, "-W", "ignore", "-c", program, str(student_file), str(rows)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.mark.parametrize("normalize", ["row_l1", "row_l2"])
def test_features_are_normalised_before_the_first_layer(tmp_path: Path, normalize: str) -> None:
    model = models.build("mlp", in_dim=6, hidden_dim=20, out_dim=3, num_layers=2).eval()
    x = torch.randn(30, 6)
    x[4] = 0
    scale = x.norm(p=1 if normalize == "row_l1" else 2, dim=1, keepdim=True)
    expected = model(x / scale.masked_fill(scale == 0, 1)).logits.detach()
    student = PackedStudent.load(pack(model, tmp_path / "s.safetensors", normalize=normalize))
    np.testing.assert_allclose(student.predict(x.numpy()), expected, atol=1e-5)
    np.testing.assert_allclose(student.predict(x[4:5].numpy()), expected[4:5], atol=1e-5)


def test_one_row_takes_no_memory(student_file: Path, rows: torch.Tensor) -> None:
    student, x = PackedStudent.load(student_file), rows[:1].numpy()
    student.predict(x)
    resident = Path("/proc/self/statm")
    if not resident.exists():
        pytest.skip("needs /proc/self/statm")
    before = int(resident.read_text().split()[1])
    for _ in range(20000):
        student.predict(x)
    assert int(resident.read_text().split()[1]) - before < 256  # pages


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("cpu", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_gives_the_answer(
    model: Model, rows: torch.Tensor, tmp_path: Path, cpu: str, dtype: str
) -> None:
    student_file = pack(model, tmp_path / "student.safetensors", dtype=dtype)
    np.save(tmp_path / "x.npy", rows.numpy())
    program = (
        "import sys, numpy as np; from gmoe_ext.runtime import PackedStudent\n"
        "student, x = PackedStudent.load(sys.argv[1]), np.load(sys.argv[2])\n"
        "alone = np.concatenate([student.predict(x[i:i+1]) for i in range(len(x))])\n"
        "assert student.info()['cpu'] == sys.argv[4] and np.array_equal(alone, student.predict(x))\n"
        "np.save(sys.argv[3], alone)"
    )
    arguments = [str(student_file), str(tmp_path / "x.npy"), str(tmp_path / "y.npy"), cpu]
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "GMOE_EXT_CPU": cpu, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    if "this processor supports at most" in result.stderr:
        pytest.skip(f"this processor has no {cpu}")
    assert result.returncode == 0, result.stderr
    expected = PackedStudent.load(student_file).predict(rows.numpy())
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, atol=1e-5)
