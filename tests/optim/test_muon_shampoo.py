"""Muon and Shampoo tell matrices from the rest, and see through patterns."""

import pytest
import torch
from torch import nn

from steepest import AdamW, Muon, Shampoo, Stiefel, constrain, param_groups
from steepest.norms import Spectral

MATRIX = {"muon": lambda p, **o: Muon(p, norm=Spectral("exact"), **o), "shampoo": Shampoo}
BOTH = pytest.mark.parametrize("name", MATRIX)


def gradients(params, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)


@BOTH
def test_bare_vectors_go_to_adamw_with_its_own_options(name):
    matrix, vector, scalar = (
        nn.Parameter(torch.ones(3, 2)),
        nn.Parameter(torch.ones(4)),
        nn.Parameter(torch.tensor(1.0)),
    )
    options = {"adamw_lr": 0.01, "adamw_betas": (0.8, 0.9), "adamw_eps": 1e-6, "adamw_weight_decay": 0.1}
    optimizer = MATRIX[name]([matrix, vector, scalar], lr=0.3, weight_decay=0.2, **options)
    found = [(g["role"], g["lr"], g["weight_decay"], len(g["params"])) for g in optimizer.param_groups]
    assert found == [("matrix", 0.3, 0.2, 1), ("other", 0.01, 0.1, 2)]
    twins = [nn.Parameter(p.detach().clone()) for p in (vector, scalar)]
    oracle = torch.optim.AdamW(twins, lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1)
    for i in range(5):
        gradients([matrix, vector, scalar], i)
        for p, q in zip((vector, scalar), twins, strict=True):
            q.grad = p.grad.clone()
        optimizer.step()
        oracle.step()
    for p, q in zip((vector, scalar), twins, strict=True):
        torch.testing.assert_close(p, q)


@BOTH
def test_a_bare_tensor_of_four_axes_is_refused_with_ways_out_that_work(name):
    layer = nn.Conv2d(2, 4, 3)
    with pytest.raises(ValueError, match=r"weight: shape \(4, 2, 3, 3\) does not say") as caught:
        MATRIX[name](layer.named_parameters())
    for way in ("param_groups(model)", "matrix='o i h w -> o (i h w)'", "role='other'"):
        assert way in str(caught.value)
    MATRIX[name](param_groups(layer))
    by_pattern = MATRIX[name]([{"params": [layer.weight], "matrix": "o i h w -> o (i h w)"}])
    assert by_pattern.param_groups[0]["role"] == "matrix"
    by_role = MATRIX[name]([{"params": [layer.weight], "role": "other"}])
    gradients([layer.weight])
    by_pattern.step()
    by_role.step()


@BOTH
def test_a_wrong_pattern_is_refused_by_name(name):
    layer = nn.Conv2d(2, 4, 3)
    with pytest.raises(ValueError, match=r"parameter 0: matrix: 'o i -> i o' does not fit shape \(4, 2, 3, 3\)"):
        MATRIX[name]([{"params": [layer.weight], "matrix": "o i -> i o"}])


@pytest.mark.usefixtures("unconstrained")
@BOTH
@pytest.mark.parametrize("kind", ["conv", "transposed", "qkv", "stack", "gpt2"])
def test_a_pattern_steps_as_the_matrix_would(name, kind):
    generator = torch.Generator().manual_seed(0)
    shape, pattern, sizes, matrix, back = {
        "conv": ((4, 2, 3, 3), "o i h w -> o (i h w)", {}, lambda w: w.flatten(1), lambda w: w.view(4, 2, 3, 3)),
        "transposed": (
            (2, 4, 3, 3),
            "i o h w -> o (i h w)",
            {},
            lambda w: w.transpose(0, 1).flatten(1),
            lambda w: w.view(4, 2, 3, 3).transpose(0, 1),
        ),
        "qkv": ((12, 5), "(s o) i -> s o i", {"s": 3}, lambda w: w.view(3, 4, 5), lambda w: w.reshape(12, 5)),
        "stack": ((3, 4, 5), "e i o -> e o i", {}, lambda w: w.mT, lambda w: w.mT),
        "gpt2": ((4, 5), "i o -> o i", {}, lambda w: w.T, lambda w: w.T),
    }[kind]
    start = torch.randn(shape, generator=generator, dtype=torch.float64)
    weight = nn.Parameter(start.clone())
    parts = matrix(start).clone()
    parts = [nn.Parameter(part) for part in (parts if parts.ndim == 3 else parts[None])]
    ours = MATRIX[name]([{"params": [weight], "matrix": pattern, "sizes": sizes}], lr=0.1, weight_decay=0.1)
    theirs = [MATRIX[name]([part], lr=0.1, weight_decay=0.1) for part in parts]
    for _ in range(4):
        weight.grad = torch.randn(shape, generator=generator, dtype=torch.float64)
        split = matrix(weight.grad)
        for part, g in zip(parts, split if split.ndim == 3 else split[None], strict=True):
            part.grad = g.clone()
        ours.step()
        for optimizer in theirs:
            optimizer.step()
    whole = torch.stack([p.detach() for p in parts]) if split.ndim == 3 else parts[0].detach()
    torch.testing.assert_close(weight.detach(), back(whole), rtol=0, atol=1e-10)
    assert (weight - start).abs().max() > 0.05


@BOTH
def test_roles_may_be_set_by_hand(name):
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4, bias=False))
    groups = param_groups(model)
    groups[0]["role"] = "other"
    optimizer = MATRIX[name](groups, lr=0.1, adamw_lr=0.02)
    assert {g["lr"] for g in optimizer.param_groups} == {0.02}
    twin = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4, bias=False))
    twin.load_state_dict(model.state_dict())
    oracle = AdamW(twin.parameters(), lr=0.02, betas=(0.9, 0.95), weight_decay=0.0)
    for m in (model, twin):
        gradients(m.parameters())
    optimizer.step()
    oracle.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@BOTH
def test_a_bare_constrained_parameter_may_go_to_adamw_and_stays_on_its_manifold(name):
    layer = constrain(nn.Linear(4, 4, bias=False), "weight", Stiefel())
    optimizer = MATRIX[name]([{"params": [layer.weight], "role": "other"}], adamw_lr=0.1)
    assert optimizer.param_groups[0]["geometry"] == Stiefel().to_spec()
    assert optimizer.param_groups[0]["lr"] == 0.1
    for i in range(5):
        gradients([layer.weight], i)
        optimizer.step()
    assert optimizer.residual() < 1e-5
    assert "adam_scale.second.skew" in optimizer.state[layer.weight]


@BOTH
def test_a_scheduler_scales_both_rates(name):
    model = nn.Linear(3, 3)
    optimizer = MATRIX[name](param_groups(model), lr=0.4, adamw_lr=0.04)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    gradients(model.parameters())
    optimizer.step()
    schedule.step()
    assert [g["lr"] for g in optimizer.param_groups] == [0.2, 0.02]
    assert not torch.equal(before["bias"], model.bias)
    cyclic = torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.4, 0.04], total_steps=10)
    optimizer.step()
    cyclic.step()


@BOTH
def test_an_expert_stack_equals_its_matrices_one_by_one(name):
    stack = nn.Parameter(torch.randn(3, 5, 4, dtype=torch.float64))
    singles = [nn.Parameter(w.clone()) for w in stack.detach()]
    ours = MATRIX[name]([{"params": [stack], "role": "matrix"}], lr=0.1)
    theirs = MATRIX[name](singles, lr=0.1)
    for i in range(3):
        gradients([stack], i)
        for w, g in zip(singles, stack.grad, strict=True):
            w.grad = g.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(stack.detach(), torch.stack([w.detach() for w in singles]), rtol=0, atol=1e-10)


def test_an_exact_muon_step_has_singular_values_one():
    weight = nn.Parameter(torch.zeros(6, 4))
    gradients([weight])
    optimizer = Muon([weight], lr=1.0, norm=Spectral("exact"), scale="none")
    optimizer.step()
    torch.testing.assert_close(torch.linalg.svdvals(weight.detach()), torch.ones(4))
