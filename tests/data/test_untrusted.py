"""Promises about bytes from outside: sizes are checked before memory is taken, and only numbers are built of them."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from gmoe_ext import data
from gmoe_ext.data import convert, pickled
from gmoe_ext.data.arrays import read_csv, read_npz
from gmoe_ext.errors import DataError
from tests.data.make import link_arrays, molecule_arrays, node_arrays, split_arrays, write_npz, write_ogb_links


def member(folder: Path, header: str, content: bytes = b"", name: str = "y.npy") -> Path:
    """Write an npz of one array with a header as text."""
    text = header.ljust(117).encode("latin1") + b"\n"
    path = folder / "crafted.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content)
    return path


@pytest.mark.parametrize(
    ("header", "content", "text"),
    [
        ("{'descr': '<i8', 'fortran_order': False, 'shape': (8589934592,)}", b"x" * 16, r"\[8589934592\] of int64"),
        ("{'descr': '<i8', 'fortran_order': False, 'shape': (-1, -2)}", b"x" * 16, r"header says \[-1, -2\]"),
        ("{'descr': '<i8', 'fortran_order': False, 'shape': (1,)}", b"x" * 16, "which is 8 bytes, but 16 follow"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (2,)}", b"x" * 16, "Python objects, which are not loaded"),
        ("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (2,)}", b"x" * 16, "Python objects"),
        ("{'descr': '<M8[s]', 'fortran_order': False, 'shape': (2,)}", b"x" * 16, "has dtype datetime64"),
        ("{'descr': '<c8', 'fortran_order': False, 'shape': (2,)}", b"x" * 16, "has dtype complex64"),
        ("{'descr': '|V8', 'fortran_order': False, 'shape': (2,)}", b"x" * 16, "has dtype"),
        ("{'descr': '<U2', 'fortran_order': False, 'shape': (2,)}", b"\xff" * 16, "a character is not Unicode"),
        ("{'descr': '|b1', 'fortran_order': False, 'shape': (16,)}", b"\x07" * 16, "a boolean is neither 0 nor 1"),
        ("{'descr': '<i8', 'fortran_order': False, 'shape': (2,)", b"x" * 16, "no header of npy format"),
        ("{'descr': '<i8', 'fortran_order': False, 'shape': (2,)} + 1", b"x" * 16, "no header of npy format"),
        ("{'descr': '<i8', 'shape': (2,)}", b"x" * 16, "no header of npy format"),
        ("(" * 100, b"", "no header of npy format"),
    ],
)
def test_a_header_must_fit_the_bytes_behind_it(tmp_path, header, content, text):
    with pytest.raises(DataError, match=text):
        read_npz(member(tmp_path, header, content))


def test_arrays_of_either_order_and_byte_order_are_read(tmp_path):
    given = {
        "a": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "b": np.arange(3, dtype=">i2"),
        "c": np.array(["x", "yz"]),
    }
    given |= {"d": np.zeros((0, 4), np.float32), "e": np.array(7, dtype=">f8"), "f": np.array([True, False])}
    held = read_npz(write_npz(tmp_path, "all", given)).arrays
    for name, array in given.items():
        np.testing.assert_array_equal(held[name], array)
        assert held[name].dtype == array.dtype.newbyteorder("=") and held[name].dtype.isnative


def test_an_archive_that_unpacks_out_of_proportion_is_refused(tmp_path):
    path = member(tmp_path, "{'descr': '|u1', 'fortran_order': False, 'shape': (400000000,)}")
    content = bytearray(path.read_bytes())
    directory = content.rindex(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = struct.pack("<I", 400_000_128)  # the size that the directory claims
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"unpacking the archive would take 0.4 GiB of memory, but the file holds"):
        read_npz(path)


def test_archives_packed_in_other_ways_are_refused(tmp_path):
    path = tmp_path / "odd.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("y.npy", b"x")
    with pytest.raises(DataError, match="expected stored or deflated members"):
        read_npz(path)
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("y.npy", b"x")
        archive.writestr("y.npy", b"y")
    with pytest.raises(DataError, match="two members of the same name"):
        read_npz(path)


def test_a_folder_in_place_of_a_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_npz(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        pickled.read_pickle(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        (node_arrays() | {"num_nodes": np.int64(2**33)}, "expected 0 <= 'num_nodes' < 2.31"),
        (node_arrays() | {"num_nodes": np.int64(2**30)}, r"'y' of shape \[1073741824\]"),
        (
            node_arrays() | {"x_shape": np.array([40, 2**40])},
            "a weight for each of 1,099,511,627,776 columns of 'x' would take",
        ),
        (node_arrays() | {"x_indptr": np.array([0, 2**63 - 1, -2, *[0] * 37, 0])}, "'x_indptr' ascending"),
        (link_arrays() | {"num_nodes": np.int64(2**30)}, "a graph of 1,073,741,824 nodes would take 8.0 GiB"),
    ],
)
def test_a_small_file_that_asks_for_much_is_refused_before_memory_is_taken(tmp_path, arrays, text):
    write_npz(tmp_path, "big", arrays)
    with pytest.raises(DataError, match=text):
        data.load("big", tmp_path)


def test_counts_whose_sum_wraps_around_are_refused(tmp_path):
    arrays = molecule_arrays()
    arrays["num_nodes"] = arrays["num_nodes"].astype(np.int64)
    arrays["num_nodes"][:4] = 2**62
    write_npz(tmp_path, "mol_graphs", arrays)
    with pytest.raises(DataError, match="'num_nodes' adds up to more than 4,611,686,018,427,387,904"):
        data.load("mol", tmp_path)


def star(atoms: int) -> dict:
    arrays = {"num_nodes": [2, atoms], "num_bonds": [1, atoms - 1], "y": [0.0, 1.0]}
    arrays |= {"node_feat": np.zeros((atoms + 2, 9), int), "bond_feat": np.zeros((atoms, 3), int)}
    return arrays | {"bond_index": np.stack([np.zeros(atoms, int), np.concatenate([[1], np.arange(1, atoms)])])}


def test_a_two_hop_graph_that_passes_the_limit_is_refused_with_its_size():
    stars = data.MoleculeData.from_arrays("stars", split=data.splits.NONE, **star(30_000))
    assert stars.batch([0, 1]).graph.num_edges == 60_000
    text = r"up to 899,970,\d+ edges and take 6.7 GiB, expected at most 2.0 GiB; atom 0 of molecule 1 has 29,999 bonds"
    with pytest.raises(DataError, match=text):
        stars.batch([0], two_hop=True)


def test_a_gzip_bomb_is_refused_while_it_is_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "bomb.csv.gz"
    path.write_bytes(gzip.compress(b"0\n" * 2_000_000))
    assert read_csv(path, "integer").shape == (2_000_000, 1)
    monkeypatch.setattr("gmoe_ext.data.arrays._FREE_BYTES", 1 << 20)
    with pytest.raises(DataError, match="unpacking the file would take"):
        read_csv(path, "integer")


def test_a_blank_line_between_carriage_returns_does_not_shift_rows(tmp_path):
    path = tmp_path / "old.csv.gz"
    path.write_bytes(gzip.compress(b"1\r\r2\n"))
    with pytest.raises(DataError, match="expected integer numbers"):
        read_csv(path, "integer")


TEXT = b"X" + struct.pack("<I", 1)
CRAFTED = {
    "an object array over raw bytes": b"\x80\x02cnumpy\nndarray\nK\x02K\x02\x86cnumpy\ndtype\n" + TEXT + b"O\x85RC\x20"
    + b"\x10AAAAAA\0" * 4 + b"\x87R.",
    "a dtype whose flags say that its objects are numbers": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n"
    b"cnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01K\x02\x85cnumpy\ndtype\n" + TEXT + b"O\x85R(K\x03" + TEXT
    + b"|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89C\x10" + b"A" * 16 + b"tb.",
    "a memo of four billion entries": b"\x80\x02]r\xff\xff\xff\xff.",
    "a text of four gigabytes": b"\x80\x02X\xff\xff\xff\xffabc.",
    "an object of protocol 4": pickle.dumps([1], protocol=4),
    "a function": pickle.dumps(print, protocol=2),
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_pickle_is_refused(tmp_path, name):
    path = tmp_path / "ind.cora.ally"
    path.write_bytes(CRAFTED[name])
    with pytest.raises(DataError, match="damaged, or holds more than arrays"):
        convert._unpickle(path)
    with pytest.raises(DataError):
        pickled.read_pt(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", CRAFTED[name])
    with pytest.raises(DataError, match="damaged, or holds more than arrays"):
        pickled.read_pt(path)


class Dtype:
    """Is pickled as a call of numpy.dtype."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __reduce__(self):
        return np.dtype, (self.text,)


class Crafted:
    """Is pickled as an array of any state."""

    def __init__(self, *state) -> None:
        self.state = state

    def __reduce__(self):
        return np.empty(0).__reduce__()[0], (np.ndarray, (0,), b"b"), (1, *self.state)

    def __setstate__(self, state):
        raise AssertionError("only pickled")


@pytest.mark.parametrize(
    "state",
    [
        ((4,), Dtype("O"), False, b"x" * 32),
        ((4,), Dtype("i8,O"), False, b"x" * 64),
        ((4,), Dtype("i8"), False, b"x" * 31),
        ((2**40,), Dtype("i8"), False, b"x" * 32),
        ((-2, -2), Dtype("i8"), False, b"x" * 32),
        (("4",), Dtype("i8"), False, b"x" * 32),
        ((4,), "i8", False, b"x" * 32),
        ((4,), Dtype("i8"), False, [1, 2, 3, 4]),
        ((4,), Dtype("U8"), False, b"x" * 128),
    ],
)
def test_a_pickled_array_must_be_of_numbers_that_fit_its_bytes(tmp_path, state):
    path = tmp_path / "ind.cora.ally"
    path.write_bytes(pickle.dumps(Crafted(*state), protocol=2))
    with pytest.raises(DataError, match="damaged, or holds more than arrays"):
        pickled.read_pickle(path)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", ["<i8", ">f4", "u1", "<f8"])
def test_plain_arrays_are_read_from_a_pickle(tmp_path, protocol, dtype):
    path, array = tmp_path / "a", np.asfortranarray(np.arange(12).reshape(3, 4).astype(dtype))
    path.write_bytes(pickle.dumps(array, protocol=protocol))
    held = pickled.read_pickle(path)
    np.testing.assert_array_equal(held, array)
    assert held.dtype.isnative and held.flags.writeable


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_and_arrays_are_read_from_either_format_of_torch(tmp_path, legacy):
    base = torch.arange(24).reshape(4, 6)
    held = {"whole": base, "part": base[1:, ::2].T, "real": torch.tensor(0.5), "none": torch.zeros(0, 2)}
    held |= {"array": np.arange(5, dtype=np.int32), "empty": np.zeros((0, 3))}
    torch.save(held, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    read = pickled.read_pt(tmp_path / "x.pt")
    assert set(read) == set(held)
    for name, value in held.items():
        np.testing.assert_array_equal(read[name], np.asarray(value))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_tensor_beyond_its_storage_is_refused(tmp_path, legacy):
    buffer = io.BytesIO()
    torch.save({"edge": torch.arange(1000)[3:]}, buffer, _use_new_zipfile_serialization=not legacy)
    content = buffer.getvalue()
    for old, new in ((b"M\xe5\x03\x85", b"M\xe6\x03\x85"), (b"M\xe5\x03\x85", b"Mu\x00\x85")):
        assert old in content
        (tmp_path / "x.pt").write_bytes(content.replace(old, new))
        if new.startswith(b"M\xe6"):
            with pytest.raises(DataError):
                pickled.read_pt(tmp_path / "x.pt")


DAMAGE = """
import sys
from pathlib import Path
import numpy as np
from gmoe_ext.data import pickled
from gmoe_ext.errors import DataError

generator, refused = np.random.default_rng(0), 0
for path in map(Path, sys.argv[1:]):
    content, read = path.read_bytes(), pickled.read_pt if path.suffix == ".pt" else pickled.read_pickle
    for _ in range(400):
        damaged = np.frombuffer(content, np.uint8).copy()
        at = generator.integers(len(damaged), size=generator.integers(1, 4))
        damaged[at] = generator.integers(256, size=len(at))
        path.write_bytes(damaged[: len(damaged) - generator.integers(3)].tobytes())
        try:
            read(path)
        except DataError:
            refused += 1
print(refused)
"""


def test_damaged_pickles_are_read_or_refused_and_never_crash(tmp_path):
    write_ogb_links(tmp_path, "links")
    legacy, plain = tmp_path / "legacy.pt", tmp_path / "plain"
    torch.save({"edge": np.arange(20), "edge_neg": torch.arange(9)}, legacy, _use_new_zipfile_serialization=False)
    plain.write_bytes(pickle.dumps({0: [1, 2], 5: [0], "array": np.arange(6.0)}, protocol=2))
    files = [tmp_path / "links" / "split" / "target" / "valid.pt", legacy, plain]
    done = subprocess.run([sys.executable, "-c", DAMAGE, *map(str, files)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


def test_a_damaged_npz_is_read_or_refused(tmp_path):
    path = write_npz(tmp_path, "toy", node_arrays() | split_arrays(40))
    content, generator, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(150):
        damaged = np.frombuffer(content, np.uint8).copy()
        damaged[generator.integers(len(damaged))] ^= np.uint8(1 << generator.integers(8))
        path.write_bytes(damaged.tobytes())
        try:
            data.load("toy", tmp_path)
        except DataError:
            refused += 1
    assert refused > 75
