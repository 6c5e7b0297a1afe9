"""Riemannian-preconditioned LoRA: `SGD` on `FixedRank` is its method, and `Adam` on `FixedRank` is another one.

Zhang and Pilanci 2024 (2402.02347) scale gradients, gB (A A^T + d I)^-1 and (B^T B + d I)^-1 gA, and give them to an
optimiser. With d = 0 that is one of this library's frame wherever the optimiser is linear: the push after the optimiser
does the second half of what the pull before it began, and momentum is carried as the tangent vector that it stands for.
Adam is not linear: theirs runs on the scaled gradient, whose entries grow with the other factor's inverse, so that its
steps depend on how W = B A is split; in the frame it does not see that. All here is in float64.
"""

import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from torch import nn

from steepest import SGD, Adam, AdamW, FixedRank, FixedRankEmbedded, Muon, param_groups

OFFICIAL = json.loads((Path(__file__).parent / "reference/riemannian_lora/numbers.json").read_text())
FRAME = FixedRank()
ROUNDING = 1e-10  # a few steps through inverses of r x r matrices with conditions of about 10^3


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def start():
    return nn.Parameter(tensor(OFFICIAL["b"])), nn.Parameter(tensor(OFFICIAL["a"]))


def backward(b, a):
    b.grad = a.grad = None
    ((b @ a - tensor(OFFICIAL["target"])).square().sum() / 2).backward()


def steps(optimizer, b, a, count):
    for _ in range(count):
        backward(b, a)
        optimizer.step()


def on_pair(family, b, a, geometry=FRAME, **options):
    return family([{"params": [b, a], "geometry": geometry, "matrix": None, "sizes": {}}], **options)


def gap(x, y):
    return (x.detach() - y.detach()).abs().max().item()


def of(name, damping):
    cases = [c for c in OFFICIAL["cases"] if c["name"] == name and c["options"]["optimizer_reg"] == damping]
    return cases[0]["options"], cases[0]["after"]


# The authors' code. ---------------------------------------------------------------------------------------------------


def test_sgd_is_the_official_one_without_damping():
    options, after = of("SGDr", 0.0)
    b, a = start()
    optimizer = on_pair(SGD, b, a, lr=options["lr"])
    for there in after:
        steps(optimizer, b, a, 1)
        assert gap(b, tensor(there["b"])) < ROUNDING
        assert gap(a, tensor(there["a"])) < ROUNDING


def test_their_damping_is_what_remains():
    """Relative to the least squared singular value d makes a difference of that order, and is part of what breaks the
    invariance."""
    _, after = of("SGDr", 0.01)
    b, a = start()
    steps(on_pair(SGD, b, a, lr=0.1), b, a, 1)
    assert 1e-4 < gap(b, tensor(after[0]["b"])) < 1e-1


def adam_step(g, m, v, count, betas=(0.9, 0.999), eps=1e-8):
    """Adam's direction; m and v are changed."""
    m.mul_(betas[0]).add_((1 - betas[0]) * g)
    v.mul_(betas[1]).add_((1 - betas[1]) * g**2)
    return (m / (1 - betas[0] ** count)) / ((v / (1 - betas[1] ** count)).sqrt() + eps)


def test_official_adam_is_adam_of_the_scaled_gradient_with_b_after_a():
    """What theirs does, so that it is known what ours is not. Its eps is inside of the bias correction, 1e-8 that does
    not matter; B's gradient is scaled with the A that has just been stepped. PEFT's takes the A of the gradient."""
    options, after = of("AdamWr", 0.0)
    b, a = start()
    moments = [torch.zeros_like(t) for t in (a, a, b, b)]
    with torch.no_grad():
        for count, there in enumerate(after, 1):
            with torch.enable_grad():
                backward(b, a)
            a -= options["lr"] * adam_step(torch.linalg.solve(b.T @ b, a.grad), *moments[:2], count)
            b -= options["lr"] * adam_step(torch.linalg.solve(a @ a.T, b.grad, left=False), *moments[2:], count)
            assert gap(b, tensor(there["b"])) < 1e-6
            assert gap(a, tensor(there["a"])) < 1e-6


def test_our_adam_is_adam_between_the_two_halves():
    """B - lr Adam(gB La^-T) La^-1 and A - lr Lb^-T Adam(Lb^-1 gA), by dense Cholesky factors; the first moment moves
    with the point as the tangent vector that it stands for."""
    b, a = start()
    x, y = (t.detach().clone() for t in (b, a))
    optimizer = on_pair(Adam, b, a, lr=0.01)
    m = [torch.zeros_like(t) for t in (x, y)]
    v = [torch.zeros_like(t) for t in (x, y)]
    before = None
    for count in range(1, 6):
        steps(optimizer, b, a, 1)
        la, lb = torch.linalg.cholesky(y @ y.T), torch.linalg.cholesky(x.T @ x)
        if before is not None:
            m = [m[0] @ torch.linalg.solve(before[0], la), lb.T @ torch.linalg.solve(before[1].T, m[1])]
        error = x @ y - tensor(OFFICIAL["target"])
        g = [torch.linalg.solve(la, (error @ y.T).T).T, torch.linalg.solve(lb, x.T @ error)]
        step = [adam_step(g[i], m[i], v[i], count) for i in range(2)]
        x = x - 0.01 * step[0] @ torch.linalg.inv(la)
        y = y - 0.01 * torch.linalg.solve(lb.T, step[1])
        before = la, lb
        assert gap(b, x) < ROUNDING
        assert gap(a, y) < ROUNDING


# What the geometry is for: how W is split does not matter. ------------------------------------------------------------


def product_after(family, scale, **options):
    b, a = start()
    with torch.no_grad():
        b.mul_(scale)
        a.div_(scale)
    steps(on_pair(family, b, a, **options), b, a, 5)
    return b @ a


@pytest.mark.parametrize(
    ("family", "options"),
    [(SGD, {"lr": 0.1}), (SGD, {"lr": 0.1, "momentum": 0.9}), (Adam, {"lr": 0.01, "eps": 0.0}), (Muon, {"lr": 0.01})],
    ids=lambda v: v.__name__ if isinstance(v, type) else str(v),
)
def test_ours_do_not_see_how_the_product_is_split(family, options):
    assert gap(product_after(family, 1.0, **options), product_after(family, 100.0, **options)) < 1e-8


def test_theirs_does_where_the_optimiser_is_adam():
    def theirs(scale):
        b, a = start()
        b.data.mul_(scale), a.data.div_(scale)
        moments = [torch.zeros_like(t) for t in (a, a, b, b)]
        for count in range(1, 6):
            backward(b, a)
            with torch.no_grad():
                ga, gb = torch.linalg.solve(b.T @ b, a.grad), torch.linalg.solve(a @ a.T, b.grad, left=False)
                a -= 0.01 * adam_step(ga, *moments[:2], count, eps=0.0)
                b -= 0.01 * adam_step(gb, *moments[2:], count, eps=0.0)
        return b @ a

    assert gap(theirs(1.0), theirs(100.0)) > 0.1  # entries of A are 0.01, and so are its steps


# PEFT's. --------------------------------------------------------------------------------------------------------------

peft = pytest.importorskip("peft")
riemannian = pytest.importorskip("peft.optimizers.riemannian")


def adapted(init=True, trained=False, base=None):
    torch.manual_seed(0)
    net = base or nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["0", "2"], init_lora_weights=init)
    model = peft.get_peft_model(net, config).double()
    with torch.no_grad():
        for n, p in model.named_parameters():
            if trained and "lora_B" in n:
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(n)), dtype=p.dtype))
    return model


def lora(model):
    return [p for p in model.parameters() if p.requires_grad]


def train(model, optimizer, count):
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(16, n, generator=generator, dtype=torch.float64) for n in (6, 4))
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        loss = (model(x.to(lora(model)[0].dtype)) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}], ids=str)
def test_sgd_with_momentum_is_pefts_without_damping(options):
    theirs, ours = adapted(trained=True), adapted(trained=True)
    reference = riemannian.create_riemannian_optimizer(theirs, torch.optim.SGD, lr=0.05, reg=0.0, **options)
    optimizer = SGD(param_groups(ours, lora=FixedRank()), lr=0.05, **options)
    assert train(theirs, reference, 10) == pytest.approx(train(ours, optimizer, 10), rel=ROUNDING)
    assert max(map(gap, lora(theirs), lora(ours))) < ROUNDING


def test_the_first_step_of_adam_is_pefts_where_the_factors_are_orthonormal_and_only_there():
    def after_one(model, make, scale):
        with torch.no_grad():
            for n, p in model.named_parameters():
                if ".lora_" in n:
                    q = torch.linalg.qr(p if "lora_B" in n else p.mT)[0]
                    p.copy_(scale * q if "lora_B" in n else q.mT / scale)
        train(model, make(model), 1)
        return lora(model)

    def theirs(model):
        return riemannian.create_riemannian_optimizer(model, torch.optim.Adam, lr=0.01, reg=0.0)

    def ours(model):
        return Adam(param_groups(model, lora=FixedRank()), lr=0.01)

    for scale, same in ((1.0, True), (4.0, False)):
        there, here = (after_one(adapted(trained=True), make, scale) for make in (theirs, ours))
        assert (max(map(gap, there, here)) < ROUNDING) == same


def test_at_loras_start_both_move_b_alone():
    """At B = 0 the inverse of B^T B is undefined. A zero factor counts as orthonormal here, as in the authors' code for
    images; the gradient of A, B^T G = 0, moves nothing, and B takes the step that theirs takes."""
    theirs, ours = adapted(), adapted()
    before = [p.detach().clone() for p in lora(ours)]
    train(theirs, riemannian.create_riemannian_optimizer(theirs, torch.optim.SGD, lr=0.05, reg=0.0), 1)
    train(ours, SGD(param_groups(ours), lr=0.05), 1)
    assert max(map(gap, lora(theirs), lora(ours))) < ROUNDING
    assert [torch.equal(p, old) for p, old in zip(lora(ours), before, strict=True)] == [True, False] * 2


def shallow(rows, rank, seed):
    """Stock LoRA in float32, and data."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))
    model = peft.get_peft_model(net, peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["0", "2"]))
    return model, torch.randn(rows, 64), torch.randn(rows, 64)


def losses_of(model, optimizer, x, y, count):
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


FAMILIES = [(SGD, 0.3), (AdamW, 0.005), (Muon, 0.02)]
EACH_FAMILY = pytest.mark.parametrize(("family", "lr"), FAMILIES, ids=[f.__name__ for f, _ in FAMILIES])


@EACH_FAMILY
def test_two_lines_on_stock_lora_learn(family, lr):
    model, x, y = shallow(rows=64, rank=8, seed=0)
    optimizer = family(param_groups(model), lr=lr)  # the first line is that of peft.get_peft_model
    losses = losses_of(model, optimizer, x, y, 40)
    assert max(losses) == losses[0]
    assert losses[-1] < 0.9 * losses[0]


@EACH_FAMILY
def test_fewer_rows_than_ranks_do_no_harm(family, lr):
    for seed in range(4):
        model, x, y = shallow(rows=2, rank=8, seed=seed)
        losses = losses_of(model, family(param_groups(model), lr=lr), x, y, 40)
        assert max(losses) < 2 * losses[0]


# P5: parameters that a host replaces. ---------------------------------------------------------------------------------


def shard_as_accelerate_does(model, optimizer):
    """FSDP2, and the parameters in the optimiser's groups replaced by their shards, in place."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    names = {id(p): n for n, p in model.named_parameters()}
    ours = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    shards = dict(model.named_parameters())
    for group, listed in zip(optimizer.param_groups, ours, strict=True):
        group["params"] = [shards[n] for n in listed]


def test_pefts_is_plain_gradient_descent_once_parameters_are_replaced_and_says_nothing(gloo):
    def trained(make):
        model = adapted(trained=True)
        optimizer = make(model)
        shard_as_accelerate_does(model, optimizer)
        return train(model, optimizer, 3)

    plain = trained(lambda m: torch.optim.SGD(lora(m), lr=0.05))
    theirs = trained(lambda m: riemannian.create_riemannian_optimizer(m, torch.optim.SGD, lr=0.05))
    assert theirs == plain  # the fault: the pairs that it scales are tensors that nobody trains any more


@pytest.mark.parametrize("family", [SGD, Adam, Muon], ids=lambda f: f.__name__)
def test_ours_notices(family, gloo):
    model = adapted(trained=True)
    optimizer = family(param_groups(model), lr=0.05)
    shard_as_accelerate_does(model, optimizer)
    before = [p.full_tensor().clone() for p in lora(model)]
    with pytest.raises(ValueError, match=r"lora_B\.default\.weight: is sharded .* leave its module out of fully_shard"):
        train(model, optimizer, 1)
    assert all(torch.equal(p.full_tensor(), old) for p, old in zip(lora(model), before, strict=True))


@pytest.mark.parametrize("reference", [True, False], ids=["PEFT's", "ours"])
def test_whole_tensors_in_their_place_are_stepped_as_pairs(reference):
    """As where a model is moved, cast or assigned to after the optimiser was made."""

    def trained(replaced):
        model = adapted(trained=True)
        if reference:
            optimizer = riemannian.create_riemannian_optimizer(model, torch.optim.SGD, lr=0.05, reg=0.0)
        else:
            optimizer = SGD(param_groups(model, lora=FixedRank()), lr=0.05)
        if replaced:
            old = {n: p for n, p in model.named_parameters() if p.requires_grad}
            for name, p in old.items():
                owner, _, own = name.rpartition(".")
                setattr(model.get_submodule(owner), own, nn.Parameter(p.detach().clone()))
            new = {id(p): model.get_parameter(n) for n, p in old.items()}
            for group in optimizer.param_groups:
                group["params"] = [new[id(p)] for p in group["params"]]
        return train(model, optimizer, 3)

    assert (trained(True) == trained(False)) == (not reference)


# P8: the exact step, from the factors' gradients alone. ---------------------------------------------------------------


def test_a_step_is_the_dense_one_by_pseudo_inverses():
    """(B - lr G A^+)(A - lr B^+ G), G the gradient of W that no factor has."""
    b, a = start()
    x, y = b.detach().clone(), a.detach().clone()
    g = x @ y - tensor(OFFICIAL["target"])
    steps(on_pair(SGD, b, a, lr=0.1), b, a, 1)
    dense = (x - 0.1 * g @ torch.linalg.pinv(y)) @ (y - 0.1 * torch.linalg.pinv(x) @ g)
    assert gap(b @ a, dense) < ROUNDING


def test_the_step_on_the_embedded_manifold_is_the_truncated_svd():
    """The best matrix of rank r near W - lr P(G), P onto the tangent space, though G is never formed: it is pulled from
    the gradients of U, S and V."""
    b, a = start()
    triple = [nn.Parameter(t) for t in FixedRankEmbedded.from_factors((b.detach(), a.detach()))]
    manifold = FixedRankEmbedded("projection")
    u, s, v = triple
    g = (u @ s @ v.T - tensor(OFFICIAL["target"])).detach()
    left, right = (t.detach() @ t.detach().T for t in (u, v))
    dense = (u @ s @ v.T).detach() - 0.1 * (left @ g + g @ right - left @ g @ right)
    p, sigma, qh = torch.linalg.svd(dense)
    expected = (p[:, :2] * sigma[:2]) @ qh[:2]
    ((u @ s @ v.T - tensor(OFFICIAL["target"])).square().sum() / 2).backward()
    SGD([{"params": triple, "geometry": manifold, "matrix": None, "sizes": {}}], lr=0.1).step()
    assert gap(u @ s @ v.T, expected) < 1e-12


def test_rank_r_from_the_start_without_touching_the_base_weights():
    """Of PEFT's initialisations PiSSA and OLoRA start at rank r, by rewriting what they adapt; ours subtracts."""
    from steepest.adapters import RiemannLoRAConfig

    def base():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()

    x = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected, weight = base()(x), base()[0].weight
    for init in ("pissa", "olora"):  # not in float64
        rewritten = adapted(init=init, base=base().float())
        assert gap(rewritten.base_model.model[0].base_layer.weight, weight) > 0.01
    config = RiemannLoRAConfig(r=2, init="orthonormal", scale=0.5, target_modules=["0", "2"])
    model = peft.get_peft_model(base(), config)
    layer = model.base_model.model[0]
    assert torch.equal(layer.base_layer.weight, weight)
    assert gap(model(x), expected) < 1e-12
    b, a = (layer.tensors("default")[n] for n in "BA")
    assert torch.linalg.svdvals(b @ a)[1] > 0.1
    start_at = a.detach().clone()
    losses = train(model, SGD(param_groups(model), lr=0.1), 10)
    assert gap(a, start_at) > 0.01  # both factors move from the first step on
    assert losses[-1] < losses[0]
