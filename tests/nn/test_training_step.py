"""A step gives the same weights however it is run: plain, checkpointed, compiled, accumulated or on several ranks."""

from __future__ import annotations

import copy
import functools
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.checkpoint import checkpoint

from gmoe_ext import Graph, models
from gmoe_ext.nn import AtomEncoder, CosineMemoryRouter, ExpertBatchNorm, GMoEConv, MoELayer, RbMLayer
from gmoe_ext.nn.dropout import dropout

from .naive_gmoe import BOND_DIMS, Molecules

STEPS, LR = 20, 0.05


def student(memory, **options):
    torch.manual_seed(0)
    shape = {"in_dim": 6, "hidden_dim": 8, "out_dim": 3, "num_experts": 4, "k": 2}
    return models.build("rbm", memory=memory, gate_gradient=True, ema_rate=0.7, **shape, **options)


def half(step, rank):
    return torch.randn(24, 6, generator=torch.Generator().manual_seed(10 * step + rank)) + rank


def loss_of(output):
    return output.logits.square().mean() + output.logits.mean() + output.aux


def train(model, forward, ranks=(0, 1), steps=STEPS):
    """Accumulate the gradients of the ranks' rows, which is what DDP averages; return the weights."""
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9)
    for step in range(steps):
        for rank in ranks:
            (loss_of(forward(half(step, rank))) / len(ranks)).backward()
        optimizer.step()
        optimizer.zero_grad()
        model.after_step(LR)
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same(mine, theirs):
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture(scope="module", params=["buffer", "parameter"])
def plain(request):
    model = student(request.param)
    start = copy.deepcopy(model.state_dict())
    weights = train(model, model)
    assert all((weights[name] - start[name]).abs().max() > 1e-3 for name in start if "memory" in name)
    return request.param, weights


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_steps_are_plain_steps(plain, reentrant):
    memory, weights = plain
    model = student(memory)
    seen = []
    model.layers[0].register_forward_hook(lambda *_: seen.append(1))

    def forward(x):
        return models.Output(*checkpoint(lambda t: tuple(model(t)), x.requires_grad_(), use_reentrant=reentrant))

    assert_same(train(model, forward), weights)
    assert len(seen) == 4 * STEPS  # every forward was repeated


def test_compiled_steps_are_plain_steps():
    torch._dynamo.reset()
    plain, model = student("parameter"), student("parameter")
    assert_same(train(model, torch.compile(model, backend="aot_eager", fullgraph=True)), train(plain, plain))


@pytest.mark.slow
def test_steps_of_the_default_compiler_are_plain_steps():
    torch._dynamo.reset()
    plain, compiled = student("buffer", num_layers=1), student("buffer", num_layers=1)
    mine = train(compiled, torch.compile(compiled, fullgraph=True), ranks=(0,))
    assert_same(mine, train(plain, plain, ranks=(0,)))


def test_checkpointed_compiled_steps_are_plain_steps():
    torch._dynamo.reset()
    plain, model = student("parameter"), student("parameter")
    compiled = torch.compile(model, backend="aot_eager")
    mine = train(model, lambda x: checkpoint(compiled, x, use_reentrant=False), steps=4)
    assert_same(mine, train(plain, plain, steps=4))


def _rank(rank, store, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for memory in ("buffer", "parameter"):
        model = student(memory)
        weights = train(model, nn.parallel.DistributedDataParallel(model), ranks=(rank,))
        torch.save(weights, f"{out}/{memory}{rank}")
    alone, own = student("buffer"), [dist.new_group([r]) for r in range(2)][rank]
    alone(half(0, rank))
    alone.after_step(LR, own)
    torch.save(alone.state_dict(), f"{out}/alone{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_rank, (folder / "store", folder), nprocs=2)
    return folder


def test_the_steps_of_two_ranks_are_plain_steps(plain, of_ranks):
    memory, weights = plain
    ranks = [torch.load(of_ranks / f"{memory}{rank}") for rank in range(2)]
    assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in weights)
    assert_same(ranks[0], weights)


def test_a_group_of_one_rank_moves_alone(of_ranks):
    for rank in range(2):
        model = student("buffer")
        model(half(0, rank))
        model.after_step(LR)
        assert_same(torch.load(of_ranks / f"alone{rank}"), model.state_dict())


@pytest.mark.parametrize("memory", ["buffer", "parameter"])
def test_accumulated_rows_move_the_memory_as_one_batch(memory):
    x = torch.randn(60, 5, dtype=torch.float64)
    whole, parts = (CosineMemoryRouter(5, 6, 2, memory=memory).double() for _ in range(2))
    parts.load_state_dict(whole.state_dict())
    whole(x)
    for rows in (x[:1], x[1:1], x[1:40], x[40:]):
        parts(rows)
    whole.after_step(), parts.after_step()
    torch.testing.assert_close(parts.memory, whole.memory)
    moved = parts.memory.clone()
    parts.after_step()
    assert torch.equal(parts.memory, moved)


def test_an_expert_without_rows_in_any_forward_keeps_its_direction():
    router = CosineMemoryRouter(2, 2, 1)
    router.set_memory(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    router(torch.tensor([[1.0, 0.1]])), router(torch.tensor([[1.0, 0.2]]))
    router.after_step()
    torch.testing.assert_close(router.memory[1], torch.tensor([-0.9, 0.0]))


def test_the_optimizers_step_on_a_parameter_memory_stays():
    moved, both = (RbMLayer(5, 3, memory="parameter") for _ in range(2))
    both.load_state_dict(moved.state_dict())
    x, step = torch.randn(20, 5), torch.randn(4, 5)
    moved(x), both(x)
    with torch.no_grad():
        both.router.memory.add_(step)
    moved.after_step(0.1), both.after_step(0.1)
    torch.testing.assert_close(both.router.memory, moved.router.memory + step)


def test_new_memories_forget_what_was_recorded():
    router = CosineMemoryRouter(3)
    router(torch.randn(9, 3))
    router.set_memory(torch.eye(4)[:, :3] + 0.1)
    before = router.memory.clone()
    router.after_step()
    assert torch.equal(router.memory, before)


@pytest.mark.parametrize("kind", ["buffer", "parameter"])
def test_a_forward_changes_nothing(kind):
    layer = RbMLayer(5, 3, memory=kind)
    before = copy.deepcopy(layer.state_dict())
    layer(torch.randn(20, 5))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("memory", ["buffer", "parameter"])
def test_two_forwards_before_one_backward_give_the_sum_of_their_gradients(memory):
    layer = RbMLayer(5, 3, memory=memory, gate_gradient=True).double()
    first, second = (torch.randn(20, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    (layer(first)[0].sum() + layer(second)[0].square().sum()).backward()
    for x, loss in ((first, torch.sum), (second, lambda y: y.square().sum())):
        alone = x.detach().clone().requires_grad_()
        loss(layer(alone)[0]).backward()
        torch.testing.assert_close(x.grad, alone.grad)


MOLECULES = Molecules(num_nodes=30, num_bonds=45, seed=3)


def conv_of(base, norm, experts, bonds):
    shape = {"num_hop1": (experts + 1) // 2, "k": min(2, experts), "bond_dims": BOND_DIMS if bonds else None}
    return GMoEConv(5, 5, experts, base=base, norm=norm, **shape)


LAYERS = {
    **{
        f"{base} {norm} {experts}{bonds}": functools.partial(conv_of, base, norm, experts, bonds)
        for base in ("gcn", "sage", "gin")
        for norm in ("routed", "all_nodes", "none")
        for experts in (1, 4)
        for bonds in ("", " bonds")
    },
    "rbm": lambda: RbMLayer(5, 5, gate_gradient=True),
    "rbm parameter": lambda: RbMLayer(5, 5, memory="parameter"),
    "moe": lambda: MoELayer(5, 5, 4),
    "moe released": lambda: MoELayer(5, 5, 4, variant="released_code"),
}


def run(layer, x):
    if not isinstance(layer, GMoEConv):
        return layer(x)
    molecules = (MOLECULES.two_hop, MOLECULES.pair_types) if layer.config.bond_dims else ()
    return layer(x, MOLECULES.graph, *molecules)


@pytest.mark.parametrize("name", LAYERS)
def test_an_evaluation_kept_for_backward_survives_a_training_step(name):
    layer, x = LAYERS[name]().double(), torch.randn(30, 5, dtype=torch.float64)
    grads = []
    for train_between in (False, True):
        t = x.clone().requires_grad_()
        y, _ = run(layer.eval(), t)
        if train_between:
            run(layer.train(), x)
            if isinstance(layer, RbMLayer):
                layer.after_step(0.1)
        y.square().sum().backward()
        grads.append(t.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_layer_has_plain_gradients_and_statistics(name, reentrant):
    plain, again = LAYERS[name](), LAYERS[name]()
    again.load_state_dict(plain.state_dict())
    x = torch.randn(30, 5)
    results = []
    for layer in (plain, again):
        torch.manual_seed(1)
        t = x.clone().requires_grad_()
        y, aux = run(layer, t) if layer is plain else checkpoint(run, layer, t, use_reentrant=reentrant)
        (y.square().sum() + aux).backward()
        results.append([t.grad, *(p.grad for p in layer.parameters()), *layer.buffers()])
    for mine, theirs in zip(*results, strict=True):
        # A reentrant checkpoint forwards without gradients first, on a path that adds in another order.
        near = functools.partial(torch.allclose, rtol=1e-4, atol=1e-5) if reentrant else torch.equal
        assert theirs is mine is None or near(mine, theirs)


def warnings_of(do):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        do()
    return [str(one.message) for one in caught if "after_step" in str(one.message)]


def test_a_loop_that_never_moves_the_memory_is_warned():
    def loop(moves, end, fused=False):
        layer = RbMLayer(5, 3)
        optimizer = torch.optim.Adam(layer.parameters(), fused=fused)
        for _ in range(2):
            for _ in range(2):
                layer(torch.randn(9, 5))[0].sum().backward()
            optimizer.step()
            if moves:
                layer.after_step(0.1)
        if end:
            nn.Sequential(layer).eval()

    assert not warnings_of(lambda: loop(True, True))
    assert len(warnings_of(lambda: loop(False, False))) == 1
    assert len(warnings_of(lambda: loop(False, True))) == 2
    assert len(warnings_of(lambda: loop(False, True, fused=True))) == 1  # a fused step leaves no trace in the weights


def test_averaging_statistics_is_no_training():
    net = models.build("rbm", in_dim=5, hidden_dim=4, out_dim=3, norm="batch")
    assert not warnings_of(lambda: (update_bn([torch.randn(9, 5)], net), net.eval()))


@pytest.mark.parametrize("name", [name for name in LAYERS if "routed" in name or "all_nodes" in name])
def test_update_bn_takes_the_mean_over_batches(name):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.seen = LAYERS[name](), []
            self.conv.norm.register_forward_pre_hook(lambda _, given: self.seen.append(given[:2]))

        def forward(self, x):
            return run(self.conv, x)[0]

    net = Net().double()
    update_bn([torch.randn(30, 5, dtype=torch.float64) + 5 for _ in range(4)], net)
    norm = net.conv.norm
    assert norm.momentum == 0.1
    for expert in range(norm.num_experts):
        rows = [y[slots.index == expert] for y, slots in net.seen]
        rows = [some for some in rows if len(some) > 1]
        assert norm.num_batches_tracked[expert] == len(rows)
        torch.testing.assert_close(norm.running_mean[expert], torch.stack([some.mean(0) for some in rows]).mean(0))
        torch.testing.assert_close(norm.running_var[expert], torch.stack([some.var(0) for some in rows]).mean(0))


def test_statistics_saved_without_a_count_are_read():
    norm = ExpertBatchNorm(2, 3)
    saved = {name: torch.rand(value.shape) for name, value in norm.state_dict().items() if value.is_floating_point()}
    assert norm.state_dict().keys() - saved.keys() == {"num_batches_tracked"}
    norm.load_state_dict(saved)
    assert all(torch.equal(norm.state_dict()[name], value) for name, value in saved.items())


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("precision", ["bfloat16 module", "bfloat16 autocast", "float16 autocast"])
def test_every_layer_trains_in_half_precision(name, precision):
    dtype, module = getattr(torch, precision.split()[0]), "module" in precision
    layer, linear = LAYERS[name](), nn.Linear(5, 5)
    if module:
        layer.to(dtype), linear.to(dtype)
    with torch.autocast("cpu", dtype=dtype, enabled=not module):
        given = linear(torch.randn(30, 5, dtype=dtype if module else torch.float32))
        y, aux = run(layer, given)
        loss = (y.float() - 1).square().mean() + aux.float()
    assert given.dtype == dtype and y.dtype in ((dtype,) if module else (dtype, torch.float32)) and loss.isfinite()
    loss.backward()
    for parameter, value in (*linear.named_parameters(), *layer.named_parameters()):
        if value.grad is not None:
            assert value.grad.dtype == value.dtype and value.grad.isfinite().all(), parameter
    assert linear.weight.grad.abs().max() > 0
    if isinstance(layer, RbMLayer):
        before = layer.router.memory.clone()
        layer.after_step(0.1)
        assert layer.router.memory.dtype == before.dtype and not torch.equal(layer.router.memory, before)
    with torch.autocast("cpu", dtype=dtype, enabled=not module):
        assert run(layer.eval(), given.detach())[0].isfinite().all()


@pytest.mark.parametrize("given", ["graph", "two_hop"])
def test_edges_in_place_of_a_graph_are_refused_with_the_fix(given):
    edges = torch.tensor([[0, 1, 2], [1, 2, 0]])
    graph = Graph.from_edge_index(edges, 3)
    graphs = {"graph": graph, "two_hop": graph} | {given: edges}
    with pytest.raises(TypeError, match=rf"expected '{given}' to be a gmoe_ext.Graph, got Tensor; fix: .*from_edge_"):
        GMoEConv(4, 4)(torch.randn(3, 4), **graphs)


def test_dropout_compiles_in_one_graph():
    torch._dynamo.reset()
    x = torch.ones(40, 50, requires_grad=True)
    y = torch.compile(lambda t: dropout(t, 0.25), backend="aot_eager", fullgraph=True)(x)
    y.sum().backward()
    assert torch.equal(x.grad, y) and 0.6 < (y > 0).float().mean() < 0.9
    torch.testing.assert_close(y.max().item(), 1 / 0.75)


@pytest.mark.parametrize("options", [{}, {"shared_dropout": True}])
def test_a_student_with_dropout_compiles_in_one_graph(options):
    torch._dynamo.reset()
    model = student("buffer", dropout=0.5, first_layer_dropout=True, norm="batch", **options)
    loss_of(torch.compile(model, backend="aot_eager", fullgraph=True)(half(0, 0))).backward()
    assert all(layer.experts.weight.grad.abs().max() > 0 for layer in model.layers)


def test_a_compiled_atom_encoder_checks_its_values():
    torch._dynamo.reset()
    encoder = AtomEncoder(4)
    compiled = torch.compile(encoder, backend="aot_eager", fullgraph=True)
    atoms = torch.ones(3, 9, dtype=torch.int64)
    torch.testing.assert_close(compiled(atoms), encoder(atoms))
    atoms[1, 2] = 12
    with pytest.raises(RuntimeError, match="'node_feat' is out of its range"):
        compiled(atoms)
