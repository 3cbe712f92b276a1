"""Atom and bond encoders against sums of plain embeddings."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from gmoe_ext.errors import GraphIndexError
from gmoe_ext.nn import AtomEncoder, BondEncoder
from gmoe_ext.nn.gmoe.encoders import ATOM_DIMS


def random_atoms(num_nodes):
    return torch.stack([torch.randint(0, d, (num_nodes,)) for d in ATOM_DIMS], dim=1)


def test_atoms_are_sums_of_their_features_embeddings():
    encoder, atoms = AtomEncoder(8), random_atoms(20)
    tables = torch.split(encoder.weight, list(ATOM_DIMS))
    expected = sum(F.embedding(atoms[:, c], table) for c, table in enumerate(tables))
    torch.testing.assert_close(encoder(atoms), expected)


def test_atom_gradients_count_uses():
    encoder, atoms = AtomEncoder(2), random_atoms(20)
    encoder(atoms).sum().backward()
    uses = torch.cat([torch.bincount(atoms[:, c], minlength=d) for c, d in enumerate(ATOM_DIMS)])
    torch.testing.assert_close(encoder.weight.grad[:, 0], uses.float())


def test_no_atoms_give_no_rows():
    assert AtomEncoder(8)(torch.zeros(0, 9, dtype=torch.int64)).shape == (0, 8)


def test_each_table_starts_as_xavier_uniform():
    torch.manual_seed(0)
    tables = torch.split(AtomEncoder(64).weight, list(ATOM_DIMS))
    for table in tables:
        bound = math.sqrt(6 / sum(table.shape))
        assert 0.9 * bound < table.abs().max() <= bound
    for table in BondEncoder(3, 64).tables:
        bound = math.sqrt(6 / sum(table.shape[1:]))
        assert 0.9 * bound < table.abs().max() <= bound


@pytest.mark.parametrize(("column", "value"), [(0, 119), (8, 2), (3, -1)])
def test_a_feature_out_of_range_is_refused(column, value, device):
    if device.type != "cpu":
        pytest.skip("looked for on the CPU alone: a device would have to be waited for")
    atoms = random_atoms(3)
    atoms[1, column] = value
    with pytest.raises(GraphIndexError, match=f"'node_feat' at position {9 + column} is {value}, expected 0 <= index"):
        AtomEncoder(8)(atoms)


def test_a_wrong_number_of_features_is_refused():
    with pytest.raises(ValueError, match=r"shape \[N, 9\], got \[3, 8\]"):
        AtomEncoder(8)(torch.zeros(3, 8, dtype=torch.int64))


def test_a_bond_type_is_the_sum_of_its_features():
    encoder = BondEncoder(2, dim=4)
    table = encoder()
    assert table.shape == (2, 60, 4) and encoder.num_types == 60
    for a, b, c in [(0, 0, 0), (4, 5, 1), (2, 3, 0)]:
        expected = encoder.tables[0][:, a] + encoder.tables[1][:, b] + encoder.tables[2][:, c]
        torch.testing.assert_close(table[:, (a * 6 + b) * 2 + c], expected)


def test_a_two_hop_type_is_the_sum_of_its_bonds():
    encoder = BondEncoder(2, dim=4, hops=2)
    pairs = torch.tensor([[59, 0], [7, 7], [12, 33]])
    first, second = BondEncoder(2, dim=4), BondEncoder(2, dim=4)
    first.tables, second.tables = encoder.tables[:3], encoder.tables[3:]
    torch.testing.assert_close(encoder(pairs), first()[:, pairs[:, 0]] + second()[:, pairs[:, 1]])
    with pytest.raises(ValueError, match="need 'pair_types'"):
        encoder()
