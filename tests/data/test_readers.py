"""Promises of the OGB raw reader and of the conversion from PyG."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from gmoe_ext import data
from gmoe_ext.errors import DataError, DataWarning
from tests.data.make import (
    Trap,
    molecule_arrays,
    node_arrays,
    split_arrays,
    write_csv,
    write_ogb_links,
    write_ogb_molecules,
    write_ogb_nodes,
)


def test_raw_molecules_equal_the_same_arrays_in_npz(tmp_path):
    arrays = write_ogb_molecules(tmp_path, "raw")
    np.savez(tmp_path / "packed_graphs.npz", **arrays, **split_arrays(30))
    raw, packed = data.load("raw", tmp_path), data.load("packed", tmp_path)
    assert torch.equal(raw.node_feat, packed.node_feat) and torch.equal(raw.graph.edge_type, packed.graph.edge_type)
    assert torch.equal(raw.graph.columns, packed.graph.columns) and torch.equal(raw.val_idx, packed.val_idx)
    torch.testing.assert_close(raw.y, packed.y, equal_nan=True)
    assert raw.split == "official" and "raw/edge.csv.gz" in raw.sha256 and "split/scaffold/test.csv.gz" in raw.sha256


def test_raw_nodes_are_read_whole(tmp_path):
    arrays = write_ogb_nodes(tmp_path, "arxiv")
    nodes = data.load("arxiv", tmp_path)
    torch.testing.assert_close(nodes.x, torch.from_numpy(arrays["x"]))
    assert nodes.y.tolist() == arrays["y"].tolist() and nodes.graph.num_edges == 2 * arrays["edge_index"].shape[1]
    assert (nodes.split, len(nodes.train_idx)) == ("official", 26)


def test_nodes_without_features_get_the_mean_of_their_edges_features(tmp_path):
    arrays = write_ogb_nodes(tmp_path, "proteins")
    raw = tmp_path / "proteins" / "raw"
    (raw / "node-feat.csv.gz").unlink()
    edges = arrays["edge_index"]
    features = np.random.default_rng(1).random((edges.shape[1], 2))
    write_csv(raw, "edge-feat", features)
    write_csv(raw, "node-label", np.stack([arrays["y"], 1 - arrays["y"], arrays["y"]], 1))
    nodes = data.load("proteins", tmp_path)
    assert (nodes.metric, nodes.num_classes, nodes.y.shape) == ("rocauc", 3, (40, 3))
    touching = (edges == 7).any(0)
    np.testing.assert_allclose(nodes.x[7], features[touching].mean(0), rtol=1e-5)


def test_raw_links_are_read_from_arrays_and_tensors(tmp_path):
    held = write_ogb_links(tmp_path, "ogbl_ppa")
    links = data.load("ogbl_ppa", tmp_path)
    assert links.train_edge.T.tolist() == held["train"]["edge"].tolist()
    assert links.val_edge_neg.T.tolist() == held["valid"]["edge_neg"].tolist()
    assert links.metric == "hits@100" and links.graph.num_edges == 160
    (tmp_path / "ogbl_ppa" / "split" / "target" / "train.pt").unlink()
    assert torch.equal(data.load("ogbl_ppa", tmp_path).train_edge, links.train_edge)


def test_code_in_a_split_file_is_not_run(tmp_path):
    write_ogb_links(tmp_path, "links")
    path = tmp_path / "links" / "split" / "target" / "valid.pt"
    torch.save({"edge": Trap()}, path)
    with pytest.raises(DataError, match=r"valid\.pt: damaged, or holds more than arrays"):
        data.load("links", tmp_path)
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError, match=r"valid\.pt: damaged"):
        data.load("links", tmp_path)


@pytest.mark.parametrize(
    ("file", "rows", "text"),
    [
        ("raw/edge", [[0, 99]], "bond_index"),
        ("raw/num-node-list", [1] * 30, "'num_nodes' adds up to 30"),
        ("raw/node-feat", np.zeros((3, 9), int), "'num_nodes' adds up to"),
        ("split/scaffold/test", [[0]], "id 0 is in both the train and test part"),
        ("split/scaffold/valid", [[777]], "val id at position 0 is 777"),
        ("raw/graph-label", [[1.0]], r"'y' of shape .*, got \[1, 1\]; 'y' is raw/graph-label\.csv\.gz"),
    ],
)
def test_bad_raw_molecules_give_their_error(tmp_path, file, rows, text):
    write_ogb_molecules(tmp_path, "raw")
    path = tmp_path / "raw" / file
    write_csv(path.parent, path.name, rows)
    with pytest.raises(DataError, match=text):
        data.load("raw", tmp_path)


@pytest.mark.parametrize("file", ["raw/num-edge-list", "raw/node-feat", "split/scaffold/train"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_missing_or_truncated_raw_file_is_named(tmp_path, file, damage):
    write_ogb_molecules(tmp_path, "raw")
    path = tmp_path / "raw" / f"{file}.csv.gz"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="no atom or bond" if "feat" in file and damage == "missing" else path.name):
        data.load("raw", tmp_path)


def test_bad_raw_nodes_give_their_error(tmp_path):
    write_ogb_nodes(tmp_path, "arxiv")
    raw = tmp_path / "arxiv" / "raw"
    write_csv(raw, "node-feat", np.zeros((39, 3)))
    with pytest.raises(DataError, match=r"'x' of shape \[40, any\], got \[39, 3\]; 'x' is raw/node-feat\.csv\.gz"):
        data.load("arxiv", tmp_path)
    (raw / "node-feat.csv.gz").unlink()
    with pytest.raises(DataError, match="neither raw/node-feat"):
        data.load("arxiv", tmp_path)
    (raw / "node-label.csv.gz").unlink()
    with pytest.raises(DataError, match="is incomplete"):
        data.load("arxiv", tmp_path)


def test_two_split_folders_are_refused(tmp_path):
    write_ogb_nodes(tmp_path, "arxiv")
    (tmp_path / "arxiv" / "split" / "random").mkdir()
    with pytest.raises(DataError, match="one folder under split, got random, time"):
        data.load("arxiv", tmp_path)


def pyg_nodes():
    pyg = pytest.importorskip("torch_geometric.data")
    arrays = node_arrays()
    edges = torch.from_numpy(arrays["edge_index"]).long()
    return pyg.Data(x=torch.eye(40), edge_index=torch.cat([edges, edges.flip(0)], 1), y=torch.from_numpy(arrays["y"]))


def test_pyg_nodes_with_masks():
    source = pyg_nodes()
    for name, ids in split_arrays(40, "val_idx").items():
        mask = torch.zeros(40, dtype=torch.bool)
        mask[ids] = True
        source[name.replace("_idx", "_mask")] = mask
    nodes = data.from_pyg(source, "mine")
    assert nodes.split == "public" and nodes.train_idx.tolist() == list(range(26))
    assert nodes.graph.num_edges == source.num_edges and data.from_pyg([source]).num_nodes == 40
    columns = torch.stack([~source.train_mask, source.train_mask], 1)
    source.train_mask = columns
    assert data.from_pyg(source, split_seed=1).train_idx.tolist() == list(range(26))
    source.train_mask = source.train_mask.float()
    with pytest.raises(DataError, match="'train_mask' of boolean values"):
        data.from_pyg(source)


def test_pyg_nodes_without_masks_or_labels():
    source = pyg_nodes()
    with pytest.raises(DataError, match="class 0 has 20 nodes"):
        data.from_pyg(source)
    source.y = None
    with pytest.raises(DataError, match="has no 'y'"):
        data.from_pyg(source)


def test_pyg_molecules_equal_the_same_arrays():
    pyg = pytest.importorskip("torch_geometric.data")
    arrays = molecule_arrays()
    atoms, bonds = np.cumsum(arrays["num_nodes"]), np.cumsum(arrays["num_bonds"])
    graphs = []
    for index in range(30):
        atom, bond = (
            slice(atoms[index] - arrays["num_nodes"][index], atoms[index]),
            slice(bonds[index] - arrays["num_bonds"][index], bonds[index]),
        )
        edges = torch.from_numpy(arrays["bond_index"][:, bond]).long()
        kinds = torch.from_numpy(arrays["bond_feat"][bond]).long()
        graphs.append(
            pyg.Data(
                x=torch.from_numpy(arrays["node_feat"][atom]).long(),
                edge_index=torch.stack([edges, edges.flip(0)], 2).reshape(2, -1),
                edge_attr=kinds.repeat_interleave(2, 0),
                y=torch.from_numpy(arrays["y"][index : index + 1]),
            )
        )
    converted = data.from_pyg(graphs, "mine")
    expected = data.MoleculeData.from_arrays("mine", split=data.splits.random(30), **arrays)
    for name in ("offsets", "columns", "edge_type"):
        assert torch.equal(getattr(converted.graph, name), getattr(expected.graph, name))
    torch.testing.assert_close(converted.y, expected.y, equal_nan=True)
    assert torch.equal(converted.node_feat, expected.node_feat) and converted.split == "random"
    with pytest.raises(DataError, match="empty dataset"):
        data.from_pyg([])


@pytest.mark.parametrize("write", [write_ogb_nodes, write_ogb_molecules])
def test_raw_edges_of_three_columns_are_refused(tmp_path, write):
    write(tmp_path, "raw")
    write_csv(tmp_path / "raw" / "raw", "edge", np.zeros((6, 3), int))
    with pytest.raises(DataError, match=r"expected two columns, source and target, in raw/edge\.csv\.gz, got 3"):
        data.load("raw", tmp_path)


def test_raw_lists_of_two_columns_are_refused(tmp_path):
    write_ogb_molecules(tmp_path, "raw")
    write_csv(tmp_path / "raw" / "raw", "num-node-list", np.ones((15, 2), int))
    with pytest.raises(DataError, match=r"expected one column in raw/num-node-list\.csv\.gz, got 2"):
        data.load("raw", tmp_path)


def test_a_raw_edge_count_that_differs_is_refused(tmp_path):
    write_ogb_nodes(tmp_path, "arxiv")
    write_csv(tmp_path / "arxiv" / "raw", "num-edge-list", [7])
    with pytest.raises(DataError, match=r"expected 'num_edges' .*, got \[7\]; 'num_edges' is raw/num-edge-list"):
        data.load("arxiv", tmp_path)


def test_raw_files_that_are_not_read_are_named(tmp_path):
    write_ogb_nodes(tmp_path, "arxiv")
    write_csv(tmp_path / "arxiv" / "raw", "node_year", np.zeros(40))
    with pytest.warns(DataWarning, match=r"not read: raw/node_year\.csv\.gz"):
        assert "raw/node_year.csv.gz" in data.load("arxiv", tmp_path).summary()
    write_ogb_links(tmp_path, "links")
    path = tmp_path / "links" / "split" / "target" / "train.pt"
    torch.save({"edge": np.array([[0, 1]]), "weight": np.ones(1)}, path)
    with pytest.warns(DataWarning, match=r"not read: weight of train\.pt"):
        data.load("links", tmp_path)


def one_graph_dataset(graphs, split):
    pyg = pytest.importorskip("torch_geometric.data")

    class Dataset(pyg.InMemoryDataset):
        def __init__(self):
            super().__init__(None)
            self.data, self.slices = self.collate(graphs)

        def get_idx_split(self):
            return split

    return Dataset()


def test_the_official_split_of_a_dataset_of_one_graph_is_used():
    source = pyg_nodes()
    parts = {"train": torch.arange(20), "valid": torch.arange(20, 30), "test": torch.arange(30, 40)}
    nodes = data.from_pyg(one_graph_dataset([source], parts))
    assert nodes.split == "official" and nodes.test_idx.tolist() == list(range(30, 40))
    source.train_mask = torch.arange(40) < 19
    with pytest.raises(DataError, match="the train part is given twice, and differently: train, train_mask"):
        data.from_pyg(one_graph_dataset([source], parts))


def pyg_molecule(edges, label=1.0, **more):
    pyg = pytest.importorskip("torch_geometric.data")
    edges = torch.tensor(edges, dtype=torch.long).reshape(-1, 2).T
    kinds = torch.zeros(edges.shape[1], 3, dtype=torch.long)
    x = torch.zeros(3, 9, dtype=torch.long)
    return pyg.Data(**{"x": x, "edge_index": edges, "edge_attr": kinds, "y": torch.tensor([[label]])} | more)


def test_bonds_of_pyg_molecules_may_run_either_way():
    ways = ([(0, 1), (1, 2)], [(1, 0), (2, 1)], [(1, 0), (0, 1), (1, 2), (2, 1)])
    graphs = [data.from_pyg([pyg_molecule(way, i % 2) for i in range(20)]).graph for way in ways]
    for graph in graphs:
        assert graph.num_edges == 80 and torch.equal(graph.columns, graphs[0].columns)


def test_the_official_split_of_a_dataset_of_molecules_is_used_but_not_of_a_part_of_it():
    parts = {"train": torch.arange(10), "valid": torch.arange(10, 15), "test": torch.arange(15, 20)}
    dataset = one_graph_dataset([pyg_molecule([(0, 1)], i % 2) for i in range(20)], parts)
    molecules = data.from_pyg(dataset)
    assert molecules.split == "official" and molecules.train_idx.tolist() == list(range(10))
    with pytest.raises(DataError, match="of the whole dataset, but this is a part of it"):
        data.from_pyg(dataset[:12])


def test_what_pyg_holds_besides_is_named():
    source = pyg_nodes()
    source.train_mask, source.val_mask, source.test_mask = (torch.arange(40) % 3 == part for part in range(3))
    source.edge_weight = torch.ones(source.num_edges)
    with pytest.warns(DataWarning, match="data 'pyg': not read: edge_weight"):
        assert "not read: edge_weight" in repr(data.from_pyg(source))


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"y": torch.ones(1, 2)}, r"molecule 19: expected 'y' of shape \[1, 1\] or \[1\], got \[1, 2\]"),
        ({"edge_attr": torch.zeros(1, 3, dtype=torch.long)}, r"molecule 19: expected 'edge_attr' of shape \[2, 3\]"),
        ({"edge_attr": None}, "molecule 19: the graph has no 'edge_attr'"),
        ({"x": torch.zeros(3, 9).bfloat16()}, "molecule 19: expected 'x' to be a dense array, got a tensor of"),
    ],
)
def test_a_bad_pyg_molecule_is_named(changed, text):
    with pytest.raises(DataError, match=text):
        data.from_pyg(
            [pyg_molecule([(0, 1), (1, 0)], i % 2) for i in range(19)] + [pyg_molecule([(0, 1), (1, 0)], **changed)]
        )


@pytest.mark.parametrize("source", [None, 3, [1, 2], object()])
def test_what_is_no_graph_is_refused(source):
    with pytest.raises(DataError):
        data.from_pyg(source)
