"""What is recorded of layers: in every way in which models are run."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from steepest.curvature import KFAC, MKOR

DOUBLE = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def factors(kfac, name=""):
    state = kfac.state_dict()["layers"][name]
    return state["inputs"], state["outputs"]


def assert_close(a, b, tolerance=1e-12):
    for s, t in zip(a, b, strict=True):
        torch.testing.assert_close(s, t, rtol=tolerance, atol=tolerance)


def moments(a, g):
    """E[a a^T] over rows and the sum over positions, mean over examples, of g g^T; g `(examples, positions, m)`."""
    a = torch.cat([a.flatten(0, -2), a.new_ones(a[..., 0].numel(), 1)], 1)
    return a.T @ a / len(a), torch.einsum("npi,npj->ij", g, g) / len(g)


@pytest.mark.parametrize("loss", ["mean", "token_mean", "sum"])
def test_scaled_to_single_examples(loss):
    """With x the inputs and v the gradients of single terms of the loss: of examples, or of examples and positions."""
    x, v = randn(5, 4, 3), randn(5, 4, 2, seed=1)
    layer = nn.Linear(3, 2).double()
    kfac = KFAC(layer, loss=loss)
    total = (layer(x) * v).sum()
    (total / {"mean": 5, "token_mean": 20, "sum": 1}[loss]).backward()
    kfac.precondition()
    a, g = moments(x, v)
    scale = {"mean": 1, "token_mean": 1 / 4, "sum": 5}[loss]  # a mean over all terms; the Fisher matrix of the sum
    assert_close(factors(kfac), (a, g * scale))


def test_used_twice_is_positions():
    layer, x, v = nn.Linear(3, 3).double(), randn(6, 2, 3), randn(6, 2, 3, seed=1)
    kfac = KFAC(layer)
    sum((layer(x[:, i]) * v[:, i]).sum() for i in range(2)).div(6).backward()
    kfac.precondition()
    assert_close(factors(kfac), moments(x, v))


def test_unbatched():
    layer, conv = nn.Linear(3, 2).double(), nn.Conv1d(2, 3, 2).double()
    x, v = randn(3), randn(2, seed=1)
    kfac = KFAC(layer)
    (layer(x) @ v).backward()
    kfac.precondition()
    assert_close(factors(kfac), moments(x[None, None], v[None, None]))
    one, many = KFAC(conv), KFAC(nn.Sequential(conv))
    conv(randn(2, 5)).square().sum().backward()
    one.precondition()
    conv.zero_grad()
    assert_close(factors(one), factors(many, "0")) if many.precondition() else None
    assert one.state_dict()["layers"][""]["updates"] == 1


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect"])
@pytest.mark.parametrize("padding", [1, "same", "valid"])
def test_padding_of_convolutions(mode, padding):
    """The patches times the weight are what the layer gives."""
    from steepest.curvature.activity import layers

    conv = nn.Conv2d(2, 3, (3, 2), padding=padding, padding_mode=mode, dilation=(1, 2)).double()
    x = randn(2, 2, 6, 5)
    (layer,) = layers(conv, ())
    weight = torch.cat([conv.weight.flatten(1), conv.bias[:, None]], 1)
    assert_close([layer.inputs(conv, x) @ weight.T], [layer.outputs(conv, conv(x))])


def test_some_of_the_layers_of_a_shape():
    """Three of one shape are used; then two, of which one sees NaN: the other one alone learns."""
    model = nn.ModuleList(nn.Linear(2, 2) for _ in range(3)).double()
    kfac, x = KFAC(model), randn(4, 2)
    sum((layer(x) * (i + 1)).sum() for i, layer in enumerate(model)).backward()
    kfac.precondition()
    before = kfac.state_dict()["layers"]
    model.zero_grad()
    (model[1](x).sum() + model[2](x * float("nan")).sum()).backward()
    kfac.precondition()
    after = kfac.state_dict()["layers"]
    same = [all(torch.equal(v, after[i][k]) for k, v in before[i].items()) for i in "012"]
    assert same == [True, False, True]


def test_a_frozen_bias_is_no_column():
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    assert factors(KFAC(layer))[0].shape == (3, 3)


def test_gpt2_layers():
    """Its weight is transposed."""
    from transformers.pytorch_utils import Conv1D

    theirs, linear = Conv1D(2, 3).double(), nn.Linear(3, 2).double()
    with torch.no_grad():
        linear.weight.copy_(theirs.weight.T)
        linear.bias.copy_(theirs.bias)
    for layer in (theirs, linear):
        kfac = KFAC(layer)
        layer(randn(4, 5, 3)).square().mean(0).sum().backward()
        kfac.precondition()
    assert_close([theirs.weight.grad, theirs.bias.grad], [linear.weight.grad.T, linear.bias.grad])


def test_in_place_activations_and_checkpoints():
    """The gradient is that of the layer's own output, and a checkpointed pass counts once."""

    def run(activation, wrap):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 2)).double()
        kfac = KFAC(model)
        x = randn(5, 3).requires_grad_()
        wrap(model, x).square().mean(0).sum().backward()
        kfac.precondition()
        return factors(kfac, "0") + factors(kfac, "2")

    plain = run(nn.ReLU(), lambda m, x: m(x))
    assert_close(run(nn.ReLU(inplace=True), lambda m, x: m(x)), plain)
    for reentrant in (True, False):
        assert_close(run(nn.ReLU(), lambda m, x, r=reentrant: checkpoint(m, x, use_reentrant=r)), plain)


def test_grad_scaler():
    """A step that the scaler leaves out changes nothing, and scaled gradients of outputs are scaled back."""
    torch.manual_seed(0)
    models = [nn.Linear(3, 2, dtype=DOUBLE) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    kfacs = [KFAC(models[0]), KFAC(models[1], scale=scaler.get_scale)]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in models]
    for kfac, optimizer in zip(kfacs, optimizers, strict=True):
        kfac.attach(optimizer)
    for step in range(4):
        x = randn(4, 3, seed=step)
        if step == 2:  # overflows, and is left out
            optimizers[1].zero_grad()
            scaler.scale((models[1](x) * float("inf")).mean(0).sum()).backward()
            scaler.step(optimizers[1])
            scaler.update()
        for model, optimizer, scaled in zip(models, optimizers, (False, True), strict=True):
            optimizer.zero_grad()
            loss = model(x).square().mean(0).sum()
            (scaler.scale(loss) if scaled else loss).backward()
            (scaler.step(optimizer), scaler.update()) if scaled else optimizer.step()
    assert scaler.get_scale() < 1024
    assert_close(models[0].parameters(), models[1].parameters())
    assert_close(factors(kfacs[0]), factors(kfacs[1]))


def test_autocast():
    """Activations in bfloat16, factors of a float32 layer in float32."""
    layer = nn.Linear(3, 2)
    kfac = KFAC(layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = layer(torch.randn(4, 3)).float().square().mean()
    loss.backward()
    kfac.precondition()
    assert all(t.dtype == torch.float32 for t in factors(kfac))


def test_lives_as_long_as_it_is_needed():
    """The model does not keep it, an optimiser that it is attached to does; of a pass nothing is left but sums."""
    layer = nn.Linear(3, 2)
    gone = weakref.ref(KFAC(layer))
    gc.collect()
    assert gone() is None
    layer(torch.ones(1, 3)).sum().backward()
    optimizer = torch.optim.SGD(layer.parameters())
    kept = weakref.ref(MKOR(layer, every=1).attach(optimizer))
    gc.collect()
    assert kept() is not None
    x = torch.ones(1000, 3, requires_grad=True)
    alive = weakref.ref(x)
    layer(x).sum().backward()
    seen = kept()._buckets[0].seen[0]
    assert (seen.inputs.numel(), seen.outputs.numel()) == (4, 2)
    del x
    gc.collect()
    assert alive() is None
    optimizer.step()
    assert kept()._buckets[0].seen[0] is None


def _work(rank, path, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    layer = nn.Linear(3, 2).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.fill_(0.5)
    kfac = KFAC(layer)
    layer(randn(6, 3)[3 * rank : 3 * rank + 3]).square().mean(0).sum().backward()
    for p in layer.parameters():
        torch.distributed.all_reduce(p.grad)
        p.grad /= 2
    kfac.precondition()
    if rank == 0:
        results.put([p.grad.tolist() for p in layer.parameters()])
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_processes_share_what_they_saw(tmp_path):
    """Two processes with a half of the batch each are one with all of it."""
    context = torch.multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    workers = [context.Process(target=_work, args=(rank, tmp_path / "store", results)) for rank in range(2)]
    for worker in workers:
        worker.start()
    theirs = [torch.tensor(g, dtype=DOUBLE) for g in results.get()]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    layer = nn.Linear(3, 2).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.fill_(0.5)
    kfac = KFAC(layer)
    layer(randn(6, 3)).square().mean(0).sum().backward()
    kfac.precondition()
    assert_close(theirs, [p.grad for p in layer.parameters()])
