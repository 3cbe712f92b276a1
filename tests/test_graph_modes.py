"""A Graph is the same whatever mode it is first used in, and travels through files, processes and compilers."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from gmoe_ext import ops
from gmoe_ext.errors import ArgumentError, GmoeError, GraphIndexError, MissingExtraError
from gmoe_ext.graph import Graph
from tests.graphs import random_graph

NORMS = {
    "gcn": lambda graph: graph.gcn_norm(),
    "gcn without loops": lambda graph: graph.gcn_norm(add_self_loops=False),
    "mean": lambda graph: graph.mean_norm(),
    "mean with loops": lambda graph: graph.mean_norm(add_self_loops=True),
    "loops": lambda graph: graph.with_self_loops(),
    "plain": lambda graph: graph,
}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


MODES = {
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "float64 by default": lambda: default_dtype(torch.float64),
    "bfloat16 autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "float16 autocast": lambda: torch.autocast("cpu", dtype=torch.float16),
}


def tensors(graph: Graph) -> list[Tensor]:
    reverse, order = graph.transpose(), graph.transpose_order
    found = [value for one in (graph, reverse) for value in (one.offsets, one.columns, one.weight, one.edge_type)]
    return [value for value in (*found, graph.rows, order) if value is not None]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", NORMS)
def test_a_first_use_in_any_mode_leaves_what_training_needs(norm: str, mode: str, weighted: bool) -> None:
    edges, make = random_graph(9, 30, weighted=weighted, num_edge_types=3), NORMS[norm]
    want = tensors(make(copy.deepcopy(edges)))
    with MODES[mode]():
        # Built in the mode, too.
        built = Graph.from_edge_index(edges.edge_index(), 9, edges.weight, edges.edge_type, 3)
        graph = built.subgraph(torch.arange(9))
        graph.edges_by_type()
        tensors(make(graph))
    got = tensors(make(graph))
    for one, other in zip(got, want, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)
        assert not one.is_inference() and not one.requires_grad
    x = torch.ones(9, 2, requires_grad=True)
    ops.aggregate(make(graph), x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("norm", NORMS)
def test_a_learnt_weight_is_learnt_over_many_steps(norm: str) -> None:
    """Given once, through a subgraph and a saved copy: each step's gradient is that of the weight as it is then."""
    make, x = NORMS[norm], torch.randn(9, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    edge_index = random_graph(9, 30, seed=3).edge_index()[
        :, torch.randperm(30, generator=torch.Generator().manual_seed(2))
    ]
    weight = torch.nn.Parameter(torch.rand(30, generator=torch.Generator().manual_seed(4), dtype=torch.float64) + 0.1)
    graph = Graph.from_edge_index(edge_index, 9, weight)
    ids = torch.arange(9).flip(0)
    optimizer = torch.optim.SGD([weight], 0.05)
    for step in range(4):
        used = graph if step % 2 else graph.subgraph(ids).subgraph(ids)
        fresh = Graph.from_edge_index(edge_index, 9, weight.detach().clone())
        given = fresh.weight.clone().requires_grad_()
        want = ops.aggregate(make(fresh.with_weight(given)), x)
        if step == 0:
            with torch.no_grad():  # an evaluation first
                ops.aggregate(make(used), x)
        got = ops.aggregate(make(used), x)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
        optimizer.zero_grad()
        (got.square().sum() + got.sum()).backward()
        (grad,) = torch.autograd.grad(want.square().sum() + want.sum(), given)
        torch.testing.assert_close(weight.grad[graph.edge_id], grad, rtol=1e-10, atol=1e-10)
        optimizer.step()
    assert not weight.requires_grad_(False).equal(copy.deepcopy(graph).with_weight(None).columns)


EDGES = torch.tensor([[0, 1, 2], [1, 2, 0]])


@pytest.mark.parametrize("size", [3.7, 3.0, "3", True, None, [3], torch.tensor([3.0]), float("nan")], ids=repr)
def test_sizes_are_integers(size: object) -> None:
    with pytest.raises(TypeError, match="'num_nodes' of an integer"):
        Graph.from_edge_index(EDGES, size)
    if size is not None:
        for types in (None, torch.tensor([0, 1, 2])):
            with pytest.raises(TypeError, match="'num_edge_types' of an integer"):
                Graph.from_edge_index(EDGES, 3, edge_type=types, num_edge_types=size)
    with pytest.raises(ArgumentError, match="'num_edge_types' of a number >= 0"):
        Graph.from_edge_index(EDGES, 3, num_edge_types=-1)


def test_sizes_may_be_integers_of_numpy_and_torch() -> None:
    for size in (torch.tensor(3), torch.tensor([1, 2, 3]).numpy()[2]):
        assert repr(Graph.from_edge_index(EDGES, size)) == "Graph(3 nodes, 3 edges, int32)"


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool], ids=str)
def test_integer_weights_are_numbers(dtype: torch.dtype) -> None:
    graph, weight = Graph.from_edge_index(EDGES, 3), torch.tensor([1, 0, 1])
    for make in NORMS.values():
        got = make(graph.with_weight(weight.to(dtype)))
        want = make(graph.with_weight(weight.float()))
        assert got.weight.dtype == torch.float32 and torch.equal(got.weight, want.weight)


@pytest.mark.parametrize("hops", [1, 2])
def test_complex_weights_are_used_whole_or_refused(hops: int) -> None:
    plain, x = random_graph(7, 20), torch.randn(7, 3)
    weight = torch.randn(20, dtype=torch.complex64, requires_grad=True)
    graph = plain.with_weight(weight)
    dense = torch.zeros(7, 7, dtype=torch.complex64)
    dense = dense.index_put((plain.rows.long(), plain.columns.long()), weight, accumulate=True)
    want = torch.linalg.matrix_power(dense, hops) @ x.to(torch.complex64)
    got = ops.aggregate(graph, x, hops)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    (grad,) = torch.autograd.grad(got.abs().square().sum(), weight, retain_graph=True)
    torch.testing.assert_close(grad, torch.autograd.grad(want.abs().square().sum(), weight)[0], rtol=1e-3, atol=1e-3)
    with pytest.raises(TypeError, match="complex64"):
        graph.gcn_norm()
    with pytest.raises(TypeError, match="complex"):
        ops.edge_aggregate(random_graph(7, 20, num_edge_types=2).with_weight(weight), x, torch.randn(2, 3))
    with pytest.raises(TypeError, match="floating dtype"):
        Graph.from_edge_index(plain.edge_index(), 7, weight)


def test_a_list_of_edges_is_no_graph() -> None:
    x = torch.randn(3, 4)
    for call in (
        lambda: ops.aggregate(EDGES, x),
        lambda: ops.edge_aggregate(EDGES, x, x),
        lambda: ops.routed_edge_aggregate(EDGES, x, x[None], EDGES),
        lambda: ops.two_hop_graph(EDGES),
        lambda: ops.random_walk(EDGES, torch.arange(3), 2, 0),
    ):
        with pytest.raises(TypeError, match=r"'graph' to be a gmoe_ext.Graph, got Tensor; fix: Graph.from_edge_index"):
            call()


@pytest.mark.parametrize("types", [46_341, 50_000])
def test_more_pairs_of_types_than_fit_are_refused(types: int) -> None:
    graph = Graph.from_edge_index(EDGES, 3, edge_type=torch.zeros(3, dtype=torch.int64), num_edge_types=types)
    with pytest.raises(ArgumentError, match="at most 46,340 edge types"):
        ops.two_hop_graph(graph)


# ---- files


def through_file(graph: Graph) -> Graph:
    file = io.BytesIO()
    torch.save({"graph": graph}, file)
    file.seek(0)
    loaded: Graph = torch.load(file, weights_only=True)["graph"]
    return loaded


@pytest.mark.parametrize("weighted,types", [*itertools.product([False, True], [0, 4])])
def test_a_saved_graph_loads_without_unpickling(weighted: bool, types: int) -> None:
    graph = random_graph(9, 30, weighted=weighted, num_edge_types=types).gcn_norm()
    for one, other in zip(through_file(graph)._arguments(), graph._arguments(), strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other
    learnt = Graph.from_edge_index(EDGES.flip(1), 3, torch.nn.Parameter(torch.arange(3.0)))
    assert torch.equal(through_file(learnt).weight, learnt.weight)


DAMAGED = {
    "num_nodes": [-1, 3.0, 4, None],
    "offsets": [
        torch.tensor([0, 2, 1, 3]),
        torch.tensor([0, 1, 2, 4]),
        torch.tensor([1, 1, 2, 3]),
        torch.arange(4.0),
        7,
    ],
    "columns": [torch.tensor([0, 3, 1]), torch.tensor([0, -1, 1]), torch.ones(3), torch.ones(3, 1).long(), None],
    "weight": [torch.ones(2), torch.ones(3).long(), "abc"],
    "edge_type": [torch.tensor([0, 1, 2]), torch.tensor([0, -1, 0]), torch.tensor([0, 1]), torch.ones(3)],
    "num_edge_types": [-1, 0.5, "2"],
    "edge_id": [torch.tensor([0, 1]), torch.ones(3), torch.tensor([-1, 0, 1])],
    "weight_order": [torch.tensor([0, 1, 3]), torch.ones(3), torch.tensor([0, 1])],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in DAMAGED.items() for value in values])
def test_a_damaged_file_is_refused(field: str, value: object) -> None:
    graph = Graph.from_edge_index(EDGES, 3, torch.ones(3), torch.tensor([0, 1, 1]), 2)
    names = ("num_nodes", "offsets", "columns", "weight", "edge_type", "num_edge_types", "edge_id", "weight_order")
    arguments = dict(zip(names, graph._arguments(), strict=True)) | {field: value}
    with pytest.raises(GmoeError, match=f"Graph, as saved: .*'({field}|offsets)'"):
        through_file(Graph(**arguments))


# ---- other processes


class Broken(torch.utils.data.Dataset):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, i: int) -> Graph:
        raise self.error


def test_a_workers_error_arrives_as_itself() -> None:
    with pytest.raises(GraphIndexError) as caught:
        list(torch.utils.data.DataLoader(Broken(bad_index()), batch_size=None, num_workers=1))
    error = caught.value
    assert (error.op, error.argument, error.position, error.value, error.bound) == (
        "Graph.from_edge_index", "edge_index", 1, 9, 3,
    )  # fmt: skip


def bad_index() -> GraphIndexError:
    with pytest.raises(GraphIndexError) as caught:
        Graph.from_edge_index(torch.tensor([[0], [9]]), 3)
    return caught.value


def subclasses(kind: type[Exception]) -> Iterator[type[Exception]]:
    yield kind
    for below in kind.__subclasses__():
        yield from subclasses(below)


def test_every_error_is_made_of_one_text_and_pickles() -> None:
    import gmoe_ext.checkpoint  # noqa: F401  (has one of its own)

    for kind in [*subclasses(GmoeError), MissingExtraError]:
        again = pickle.loads(pickle.dumps(kind("what was wrong")))
        assert type(again) is kind and str(again) == "what was wrong"
    error = bad_index()
    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)


# ---- compilers


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_a_fresh_graph_compiles_whole(norm: str, weighted: bool) -> None:
    """Nothing of it was asked for before, and the gradient needs its transpose; eager calls are not disturbed."""
    torch._dynamo.reset()
    make = NORMS[norm]
    edge_index = torch.cat([random_graph(9, 30).edge_index(), torch.tensor([[2, 4, 4], [2, 4, 4]])], dim=1)
    weight = torch.rand(33) + 0.5 if weighted else None
    graph = Graph.from_edge_index(edge_index, 9, weight)
    compiled = torch.compile(lambda x, graph: ops.aggregate(make(graph), x, 2), backend="aot_eager", fullgraph=True)
    for _ in range(2):
        found = []
        for call in (compiled, lambda x, graph: ops.aggregate(make(graph), x, 2)):
            x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
            y = call(x, graph if call is compiled else Graph.from_edge_index(edge_index, 9, weight))
            y.square().sum().backward()
            found.append((y.detach(), x.grad))
        for got, want in zip(*found, strict=True):
            assert torch.equal(got, want)
    assert make(graph).num_edges == make(Graph.from_edge_index(edge_index, 9, weight)).num_edges


class Net(torch.nn.Module):
    def __init__(self, norm: str) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, edges: Tensor | Graph, weight: Tensor | None = None) -> Tensor:
        graph = edges if isinstance(edges, Graph) else Graph.from_edge_index(edges, x.shape[0], weight)
        return ops.aggregate(NORMS[self.norm](graph), x)


@pytest.mark.parametrize("norm", NORMS)
def test_an_exported_program_takes_a_graph_or_its_edges(norm: str) -> None:
    net, x = Net(norm), torch.randn(9, 3)
    edges, other = (torch.cat([random_graph(9, 30, seed=s).edge_index(), EDGES[:1].expand(2, -1)], 1) for s in (5, 6))
    graph, other_graph = (Graph.from_edge_index(e, 9, torch.rand(33) + 0.1) for e in (edges, other))
    for given, later in (
        ((graph,), (other_graph,)),
        ((edges,), (other,)),
        ((edges, torch.rand(33)), (other, torch.rand(33))),
    ):
        program = torch.export.export(net, (x, *given))
        for arguments in (given, later):
            assert torch.equal(program.module()(x, *arguments), net(x, *arguments))
    with pytest.raises(Exception, match="index out of range"):
        torch.export.export(net, (x, edges)).module()(x, edges + 5)


def test_exported_sizes_may_be_dynamic() -> None:
    nodes, edges = torch.export.Dim("nodes", min=2, max=1000), torch.export.Dim("edges", min=1, max=9000)
    x, edge_index = torch.randn(9, 3), random_graph(9, 30).edge_index()
    program = torch.export.export(Net("gcn"), (x, edge_index), dynamic_shapes=({0: nodes}, {1: edges}))
    larger = random_graph(50, 300).edge_index()
    assert torch.equal(program.module()(torch.ones(50, 3), larger), Net("gcn")(torch.ones(50, 3), larger))
