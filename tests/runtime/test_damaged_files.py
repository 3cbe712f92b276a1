"""Untrusted files are refused with a reason or served safely."""

from __future__ import annotations

import json
import os
import random
import resource
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gmoe_ext import models
from gmoe_ext.errors import ArgumentError, DataError
from gmoe_ext.export import pack
from gmoe_ext.models.registry import Model
from gmoe_ext.runtime import PackedStudent

KEY = "gmoe_ext.student"


def split(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Return the header, student document and tensor data of a valid file."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    return header, json.loads(header["__metadata__"][KEY]), data[8 + length :]


def join(header: dict[str, Any], student: Any, body: bytes) -> bytes:
    header = {**header, "__metadata__": {KEY: json.dumps(student)}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


@pytest.fixture
def load(tmp_path: Path) -> Callable[[bytes], PackedStudent]:
    def write_and_load(data: bytes) -> PackedStudent:
        path = tmp_path / "damaged.safetensors"
        path.write_bytes(data)
        return PackedStudent.load(path)

    return write_and_load


def change_student(key: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(header: dict[str, Any], student: dict[str, Any]) -> None:
        student[key] = value

    return change


def change_layer(key: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(header: dict[str, Any], student: dict[str, Any]) -> None:
        student["layers"][1][key] = value

    return change


def change_tensor(key: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(header: dict[str, Any], student: dict[str, Any]) -> None:
        header["layers.1.bias"][key] = value

    return change


REFUSALS = [
    (change_student("format_version", 2), "format version 2, this gmoe_ext reads version 1; update gmoe_ext or pack"),
    (change_student("format_version", 0), "format version 0, this gmoe_ext reads version 1; update gmoe_ext or pack"),
    (lambda header, student: student.pop("format_version"), "student: 'format_version' is missing"),
    (lambda header, student: student.pop("members"), "student: 'members' is missing"),
    (lambda header, student: student["layers"][1].pop("weights"), "layer: 'weights' is missing"),
    (change_student("members", 0), r"expected 'members' in \[1, "),
    (
        change_layer("router_dim", 5),
        "'router_dim' and 'gates' must be there with the router projected and with no other",
    ),
    (change_layer("gates", "some"), "expected 'gates' to be chosen or all"),
    (change_layer("weights", "int4"), "expected 'weights' to be float32, bfloat16 or int8"),
    (change_student("surprise", 1), "unknown field 'surprise'"),
    (change_student("x" + "\u00e9" * 40, 1), r"unknown field 'x\u00e9+\\xc3'"),
    (change_student("classes", ["a"]), "1 class names and 7 outputs"),
    (change_student("layers", []), "the student has no layers"),
    (change_student("layers", {}), r"expected an array, got '{'"),
    (change_student("features", {"columns": 24, "normalize": "none"}), "'positions' is missing"),
    (
        change_student("features", {"columns": 3, "normalize": "none", "positions": None}),
        "do not make the 24 inputs of layers.0",
    ),
    (change_student("features", {"columns": 24, "normalize": "l7", "positions": None}), "expected 'normalize'"),
    (change_layer("in", 41), "layers.1 takes 41 inputs, the layer before it gives 40"),
    (change_layer("k", 5), "'k' is larger than 'experts'"),
    (change_layer("k", 0), r"expected 'k' in \[1, "),
    (change_layer("experts", 1 << 52), "expected 'experts' in"),
    (change_layer("experts", 5), r"expected shape \[5, 40, 40\], got \[4, 40, 40\]"),
    (change_layer("router", "none"), "without a router expected 'experts' to be 1"),
    (change_layer("router", "magic"), "expected 'router' to be cosine, projected or none"),
    (change_layer("activation", "gelu"), "expected 'activation'"),
    (change_layer("in", -1), "expected an integer >= 0"),
    (change_layer("in", 1.5), "expected an integer, got a fraction"),
    (change_tensor("dtype", "F16"), r"shape \[4, 40\] of F16 takes 320 bytes, data_offsets give 640"),
    (change_tensor("dtype", "I32"), "expected dtype F32, got I32"),
    (change_tensor("dtype", "Q9"), "unknown dtype 'Q9'"),
    (change_tensor("shape", [160]), r"expected shape \[4, 40\], got \[160\]"),
    (change_tensor("shape", [1 << 40, 1 << 40]), "more than 2\\^63 bytes"),
    (change_tensor("shape", [1, 1, 1, 1, 160]), "more than 4 dimensions"),
    (change_tensor("shape", [4, -40]), "expected an integer >= 0"),
    (change_tensor("data_offsets", [0]), "fewer than two data_offsets"),
    (change_tensor("data_offsets", [0, 1, 2]), "more than two data_offsets"),
    (change_tensor("data_offsets", [0, 1 << 50]), "leave the file's"),
    (change_tensor("data_offsets", [8, 4]), "leave the file's"),
    (change_tensor("data_offsets", [0, 640]), "overlaps the tensor before it|leaves a hole before it"),
    (change_tensor("note", "x"), "has an unknown field"),
    (lambda header, student: header.pop("layers.1.bias"), "leaves a hole before it"),
    (lambda header, student: header.update(extra=dict(dtype="F32", shape=[0], data_offsets=[0, 0])), "uses 9"),
]


@pytest.mark.parametrize(("change", "text"), REFUSALS, ids=[text for _, text in REFUSALS])
def test_a_wrong_header_is_refused_by_name(student_file: Path, load, change, text: str) -> None:
    header, student, body = split(student_file.read_bytes())
    change(header, student)
    with pytest.raises(DataError, match=text):
        load(join(header, student, body))


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_narrow_weights_are_checked_by_name(model: Model, tmp_path: Path, load, dtype: str) -> None:
    header, student, body = split(pack(model, tmp_path / "s", dtype=dtype).read_bytes())
    assert load(join(header, student, body)).info()["layers"][1]["weights"] == dtype
    for other, text in (("float32", "expected dtype F32, got"), ("int8", "BF16|weight_scale"), ("bfloat16", "got I8")):
        if other != dtype:
            student["layers"][1]["weights"] = other
            with pytest.raises(DataError, match=text):
                load(join(header, student, body))


def test_a_sound_file_that_was_joined_again_answers_as_before(student_file: Path, load, rows: torch.Tensor) -> None:
    again = load(join(*split(student_file.read_bytes())))
    assert np.array_equal(again.predict(rows.numpy()), PackedStudent.load(student_file).predict(rows.numpy()))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "0 bytes, too few"),
        (b"1234567", "7 bytes, too few"),
        (struct.pack("<Q", 1 << 63) + b"{}", "the header claims 9223372036854775808 bytes"),
        (struct.pack("<Q", 3) + b"{}", "the header claims 3 bytes, expected at most 2"),
    ],
)
def test_a_wrong_length_is_refused(load, data: bytes, text: str) -> None:
    with pytest.raises(DataError, match=text):
        load(data)


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (b"", "the JSON text ends too early"),
        (b"{}", "the metadata has no 'gmoe_ext.student'"),
        (b"[[[[", r"expected an object, got '\['"),
        (b'{"a":1}', "expected an object, got '1'"),
        (b"{} x", "text after the JSON value"),
        (b'{"\xff":', "invalid UTF-8"),
        (b'{"\xed\xa0\x80":', "invalid UTF-8"),
        (b'{"\\ud800":', "a surrogate without its second half"),
        (b'{"\\q":', "an unknown escape"),
        (b'{"a\n"', "raw control character"),
        (b'{"__metadata__":{"a":"bbb', "a string does not end"),
        (b'{"__metadata__":{},"__metadata__":{}}', "'__metadata__' appears twice"),
        (b'{"a":{"dtype":"F32","dtype":"F32"}}', "a field of tensor 'a' appears twice"),
        (b'{"":{}}', "a tensor's name is empty"),
        (b'{"a\\u0000\\u001b[1m":{"dtype":"F8"}}', r"tensor 'a\\x00\\x1b\[1m': unknown dtype 'F8'"),
    ],
)
def test_a_broken_header_is_refused(load, header: bytes, text: str) -> None:
    with pytest.raises(DataError, match=text):
        load(struct.pack("<Q", len(header)) + header)


def test_memories_must_be_unit_rows(student_file: Path, load) -> None:
    header, student, body = split(student_file.read_bytes())
    begin, _ = header["layers.2.memory"]["data_offsets"]
    for value in (3.0, float("nan"), float("inf")):
        changed = bytearray(body)
        changed[begin : begin + 4] = struct.pack("<f", value)
        with pytest.raises(DataError, match=r"'layers\.2\.memory': row 0 has norm"):
            load(join(header, student, bytes(changed)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("tensor", ["weight", "bias", "router.weight", "router.bias"])
def test_weights_must_be_finite(tmp_path: Path, load, dtype: str, tensor: str) -> None:
    model = models.build("moe", in_dim=6, hidden_dim=7, out_dim=3, num_layers=2, num_experts=3, k=2).eval()
    header, student, body = split(pack(model, tmp_path / "s", dtype=dtype).read_bytes())
    name = f"layers.1.{tensor}" + ("_scale" if dtype == "int8" and tensor.endswith("weight") else "")
    _, end = header[name]["data_offsets"]
    size = 2 if header[name]["dtype"] == "BF16" else 4
    for bits in (0x7FC00000, 0x7F800000, 0xFF800000):
        changed = bytearray(body)
        changed[end - size : end] = struct.pack("<I", bits)[-size:]
        with pytest.raises(DataError, match=f"'{name}' contains NaN or infinite values"):
            load(join(header, student, bytes(changed)))


def test_memories_behind_a_projection_have_a_bounded_length(tmp_path: Path, load) -> None:
    model = models.build("moe", in_dim=6, hidden_dim=7, out_dim=3, num_layers=1, num_experts=3, k=2).eval()
    header, student, body = split(pack(model, tmp_path / "s").read_bytes())
    begin, _ = header["layers.0.memory"]["data_offsets"]
    for value, refused in ((50.0, False), (101.0, True), (float("nan"), True), (float("inf"), True)):
        changed = bytearray(body)
        changed[begin : begin + 4] = struct.pack("<f", value)
        if refused:
            with pytest.raises(DataError, match=r"'layers\.0\.memory': row 0 has norm .* expected at most 100"):
                load(join(header, student, bytes(changed)))
        else:
            assert np.isfinite(load(join(header, student, bytes(changed))).predict(np.ones((2, 6)))).all()


def members(count: int) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda header, student: student.update(members=count)


def narrower_input(header: dict[str, Any], student: dict[str, Any]) -> None:
    student["layers"][2]["in"] = 5


def other_outputs(header: dict[str, Any], student: dict[str, Any]) -> None:
    student["layers"][1]["out"] = 4


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (members(3), "4 layers are no whole number of layers for each of 3 members"),
        (members(1), "layers.2 takes 6 inputs, the layer before it gives 3"),
        (narrower_input, "do not make the 5 inputs of layers.2"),
        (other_outputs, "layers.1 ends a member with 4 outputs, the last one has 3"),
        (lambda header, student: student.pop("members"), "student: 'members' is missing"),
    ],
)
def test_members_must_fit_each_other(tmp_path: Path, load, change, text: str) -> None:
    model = models.build("ensemble", in_dim=6, hidden_dim=7, out_dim=3, num_members=2).eval()
    header, student, body = split(pack(model, tmp_path / "s").read_bytes())
    change(header, student)
    with pytest.raises(DataError, match=text):
        load(join(header, student, body))


@pytest.mark.parametrize("field", ["router_dim", "gates"])
def test_a_projection_says_what_it_is(tmp_path: Path, load, field: str) -> None:
    model = models.build("moe", in_dim=6, hidden_dim=7, out_dim=3, num_experts=3, k=2).eval()
    header, student, body = split(pack(model, tmp_path / "s").read_bytes())
    del student["layers"][0][field]
    with pytest.raises(DataError, match="'router_dim' and 'gates' must be there with the router projected"):
        load(join(header, student, body))


def test_any_path_the_system_allows(student_file: Path, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff \xc3.safetensors"
    Path(os.fsdecode(path)).write_bytes(student_file.read_bytes())
    PackedStudent.load(os.fsdecode(path))
    Path(os.fsdecode(path)).write_bytes(b"")
    with pytest.raises(DataError, match=r"\\xff \\xc3\.safetensors: the file has 0 bytes"):
        PackedStudent.load(os.fsdecode(path))


def test_a_missing_file_and_a_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors"):
        PackedStudent.load(tmp_path / "nowhere.safetensors")
    with pytest.raises(DataError, match="not a regular file"):
        PackedStudent.load(tmp_path)


def test_a_path_does_not_end_at_a_null_character(student_file: Path) -> None:
    with pytest.raises(ArgumentError, match=r"expected 'path' without null characters"):
        PackedStudent.load(f"{student_file}\0.other")


def mutations(sound: bytes, seed: int) -> Iterator[bytes]:
    """Yield damaged versions of a valid file without end, most of them damaged in the header."""
    rng = random.Random(seed)
    (length,) = struct.unpack("<Q", sound[:8])
    digits = [i for i in range(8, 8 + length) if 48 <= sound[i] < 58]
    numbers = [b"0", b"1", b"4294967296", b"9007199254740993", b"99999999999999999999", b"-1", b"1e9", b"null"]
    while True:
        data = bytearray(sound)
        kind = rng.randrange(8)
        if kind == 0:  # flip bits in the header
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(8 + length)] ^= 1 << rng.randrange(8)
        elif kind == 1:  # other digits
            for _ in range(rng.randint(1, 3)):
                data[rng.choice(digits)] = 48 + rng.randrange(10)
        elif kind == 2:  # another number
            at = rng.choice(digits)
            data[at : at + 1] = rng.choice(numbers)
            data[:8] = struct.pack("<Q", length + len(data) - len(sound))
        elif kind == 3:  # cut short, or longer
            size = rng.randrange(len(data))
            data = data[:size] if rng.random() < 0.7 else data + bytes(rng.randrange(64))
        elif kind == 4:  # a wrong length
            data[:8] = struct.pack("<Q", rng.choice([rng.getrandbits(64), length + rng.randint(-9, 9), 1]))
        elif kind == 5:  # a piece of the header twice, or missing
            a, b = sorted(rng.randrange(8, 8 + length) for _ in range(2))
            data[a:b] = data[a:b] * rng.choice([0, 2])
            data[:8] = struct.pack("<Q", max(0, length + len(data) - len(sound)))
        elif kind == 6:  # random bytes anywhere
            for _ in range(rng.randint(1, 40)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        else:  # bad numbers among the weights
            at = 8 + length + 4 * rng.randrange((len(data) - 8 - length) // 4)
            data[at : at + 4] = struct.pack("<I", rng.choice([0x7FC00000, 0x7F800000, 0xFF800000, rng.getrandbits(32)]))
        yield bytes(data)


DAMAGED = [
    ("rbm", "float32"), ("rbm", "bfloat16"), ("rbm", "int8"), ("moe", "float32"), ("moe", "int8"),
    ("ensemble", "float32"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "dtype"), DAMAGED)
def test_thousands_of_damaged_files_do_no_harm(tmp_path: Path, load, name: str, dtype: str) -> None:
    seed, experts = DAMAGED.index((name, dtype)), {} if name == "ensemble" else dict(num_experts=3, k=2)
    model = models.build(name, in_dim=6, hidden_dim=18, out_dim=3, num_layers=2, norm="batch", **experts).eval()
    sound = pack(model, tmp_path / "s.safetensors", class_names=["a", "\u00e9", '"'], dtype=dtype).read_bytes()
    x = np.random.default_rng(0).standard_normal((8, 6), np.float32)
    # A loader that believed a damaged size would ask for far more than this.
    limit = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), limit[1]))
    refused = 0
    try:
        for number, data in zip(range(1500), mutations(sound, seed), strict=False):
            try:
                student = load(data)
            except DataError as error:
                assert "damaged.safetensors: " in str(error) and len(str(error)) < 2000
                refused += 1
                continue
            columns = student.info()["layers"][0]["in"]
            for rows in (x[:1], x):
                try:
                    logits = student.predict(rows[:, :columns])
                except ValueError:
                    assert columns != 6, number  # the damage moved columns to a position table
                    continue
                assert logits.shape == (len(rows), 3)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
    assert 500 < refused < 1500
