"""Optimisers against torch.optim on plain parameters, against geoopt on manifolds, and Shampoo against its paper.

`SAME`: the two do the same float64 operations in another order. 100 steps of a small network pass on rounding errors, a
few hundred eps at most, and 1e-12 is 4500 eps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

import steepest
from steepest import SPD, Sphere, Stiefel
from steepest.norms import Spectral

SAME = {"rtol": 1e-12, "atol": 1e-12}
STEPS = 100


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def loss(model: nn.Module, step: int, dtype: torch.dtype = torch.float64) -> Tensor:
    seed = torch.Generator().manual_seed(step % 10)
    x = torch.randn(16, 6, generator=seed, dtype=dtype)
    return (model(x) - x[:, :3].sin()).square().mean()


def train(
    build: Callable[[nn.Module], torch.optim.Optimizer],
    schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
    steps: int = STEPS,
    sign: float = 1.0,
) -> list[Tensor]:
    model = network()
    optimizer = build(model)
    scheduler = schedule(optimizer) if schedule else None
    for step in range(steps):
        optimizer.zero_grad()
        (sign * loss(model, step)).backward()
        optimizer.step()
        if scheduler:
            scheduler.step()
    return [p.detach() for p in model.parameters()]


def assert_same(ours: list[Tensor], theirs: list[Tensor], **tolerance: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **(tolerance or SAME))


Options = dict[str, Any]
PAIRS: dict[str, tuple[Any, Any, Options, Options]] = {
    "sgd": (steepest.SGD, torch.optim.SGD, {"lr": 0.05}, {}),
    "sgd momentum": (steepest.SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}, {}),
    "sgd nesterov": (steepest.SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}, {}),
    "sgd decay": (steepest.SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}, {}),
    "adam": (steepest.Adam, torch.optim.Adam, {"lr": 1e-2}, {}),
    "adam decay": (steepest.Adam, torch.optim.Adam, {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.8, 0.95)}, {}),
    "adamw": (steepest.AdamW, torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}, {}),
    "adamw defaults": (steepest.AdamW, torch.optim.AdamW, {}, {}),
    "amsgrad": (steepest.AMSGrad, torch.optim.Adam, {"lr": 1e-2, "weight_decay": 0.01}, {"amsgrad": True}),
    "adagrad": (steepest.Adagrad, torch.optim.Adagrad, {"lr": 0.1}, {}),
    "adagrad decay": (
        steepest.Adagrad,
        torch.optim.Adagrad,
        {"lr": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.1, "eps": 1e-8},
        {},
    ),
}


@pytest.mark.usefixtures("unconstrained")
@pytest.mark.parametrize("name", PAIRS)
def test_equals_torch(name: str) -> None:
    ours, theirs, options, extra = PAIRS[name]
    assert_same(
        train(lambda m: ours(m.parameters(), **options)), train(lambda m: theirs(m.parameters(), **options, **extra))
    )


@pytest.mark.usefixtures("unconstrained")
@pytest.mark.parametrize("name", PAIRS)
def test_maximize_equals_torch(name: str) -> None:
    ours, theirs, options, extra = PAIRS[name]
    options = {**options, "maximize": True}
    assert_same(
        train(lambda m: ours(m.parameters(), **options), sign=-1),
        train(lambda m: theirs(m.parameters(), **options, **extra), sign=-1),
    )


@pytest.mark.usefixtures("unconstrained")
@pytest.mark.parametrize(
    ("dtype", "maximize"), [(torch.complex128, False), (torch.complex64, True)], ids=["double", "single, maximized"]
)
@pytest.mark.parametrize("name", PAIRS)
def test_equals_torch_on_complex_parameters(name: str, maximize: bool, dtype: torch.dtype) -> None:
    """50 steps on two matrices, which are one batch, and a vector. Adam and Adagrad see a complex entry as two numbers.
    complex64: Adam divides by roots of small squares, and 1e-4 is a thousand eps."""
    ours, theirs, options, extra = PAIRS[name]
    seed = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(4, 4, generator=seed, dtype=dtype) for _ in range(3))
    start = [torch.randn(shape, generator=seed, dtype=dtype) for shape in ((4, 3), (4, 3), (3,))]

    def run(kind: Any, **more: Any) -> list[Tensor]:
        params = [nn.Parameter(t.clone()) for t in start]
        optimizer = kind(params, **options, **more, maximize=maximize)
        for _ in range(50):
            optimizer.zero_grad()
            x, y, v = params
            residuals = torch.cat([a @ x + y * v.conj(), b @ y - c[:, :3]])
            value = residuals.abs().square().log1p().mean()
            (-value if maximize else value).backward()
            for p in params:
                p.grad = p.grad.resolve_conj()  # torch's Adam fails on the conjugates that its autograd leaves
            optimizer.step()
        return [p.detach() for p in params]

    single = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.complex64 else {}
    assert_same(run(ours), run(theirs, **extra), **single)


def two_groups(model: nn.Module) -> list[dict[str, Any]]:
    weights = [p for p in model.parameters() if p.ndim == 2]
    biases = [p for p in model.parameters() if p.ndim == 1]
    return [{"params": weights, "weight_decay": 0.1}, {"params": biases, "lr": 3e-2, "weight_decay": 0.0}]


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=60),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=[0.02, 0.04], total_steps=STEPS + 1),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, [lambda t: 0.98**t, lambda t: 1 / (1 + t / 10)]),
    "warm-up, then cosine": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=10), lr_scheduler.CosineAnnealingLR(o, 90)], milestones=[10]
    ),
}


@pytest.mark.usefixtures("unconstrained")
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", [pytest.param("sgd momentum", marks=pytest.mark.slow), "adamw"])
def test_equals_torch_under_schedules(name: str, schedule: str) -> None:
    """Two groups; OneCycleLR moves momentum and betas as well as the learning rate."""
    ours, theirs, options, _ = PAIRS[name]
    assert_same(
        train(lambda m: ours(two_groups(m), **options), SCHEDULES[schedule]),
        train(lambda m: theirs(two_groups(m), **options), SCHEDULES[schedule]),
    )


def test_reduce_on_plateau_moves_the_learning_rate() -> None:
    optimizer = steepest.SGD(network().parameters(), lr=0.1)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    for _ in range(3):
        scheduler.step(1.0)
    assert [g["lr"] for g in optimizer.param_groups] == [0.025]


def test_equals_torch_with_a_tensor_learning_rate() -> None:
    lr = torch.tensor(0.01, dtype=torch.float64)
    assert_same(
        train(lambda m: steepest.Adam(m.parameters(), lr=lr)), train(lambda m: torch.optim.Adam(m.parameters(), lr=lr))
    )


@pytest.mark.parametrize("name", [pytest.param("sgd momentum", marks=pytest.mark.slow), "adamw"])
def test_equals_torch_under_grad_scaler(name: str) -> None:
    """Loss scaled by 2^16, one overflow on the way: the same steps are taken and the same one is left out."""
    ours, theirs, options, extra = PAIRS[name]

    def run(build: Callable[[nn.Module], torch.optim.Optimizer]) -> tuple[list[Tensor], float]:
        model, scaler = network(torch.float32), torch.amp.GradScaler("cpu", init_scale=2.0**16)
        optimizer = build(model)
        for step in range(20):
            optimizer.zero_grad()
            scaler.scale(loss(model, step, torch.float32)).backward()
            if step == 7:
                next(model.parameters()).grad[0, 0] = math.inf
            scaler.step(optimizer)
            scaler.update()
        return [p.detach() for p in model.parameters()], scaler.get_scale()

    a, scale = run(lambda m: ours(m.parameters(), **options))
    b, expected = run(lambda m: theirs(m.parameters(), **options, **extra))
    assert scale == expected == 2.0**15
    assert_same(a, b, rtol=1e-5, atol=1e-6)  # float32, 20 steps


def test_parameters_without_gradient_are_left_alone_as_torch_does() -> None:
    def run(kind: Any) -> list[Tensor]:
        model = network()
        optimizer = kind(model.parameters(), lr=0.01, weight_decay=0.1)
        for step in range(20):
            optimizer.zero_grad(set_to_none=True)
            loss(model, step).backward()
            if step % 3 == 0:
                model[2].weight.grad = None
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    assert_same(run(steepest.AdamW), run(torch.optim.AdamW))


# Muon. ----------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon")
@pytest.mark.parametrize(("scale", "adjust"), [("keller_jordan", "original"), ("moonlight", "match_rms_adamw")])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", [(48, 16), (16, 48), (32, 32), (7, 5)], ids=str)
def test_muon_equals_torch(
    shape: tuple[int, int], nesterov: bool, weight_decay: float, scale: str, adjust: str
) -> None:
    """20 steps on float32 matrices, gradients that do not depend on the point.

    The bfloat16 iteration is the same to the last bit, so that only the float32 update x - lr (O + wd x) rounds
    otherwise than torch's x (1 - lr wd) - lr O: one eps of the entries a step. (With gradients of a loss, that last bit
    would come back through bfloat16 as 2^-9. float32, as torch's own Muon without Nesterov overwrites its buffer for
    bfloat16 parameters.)
    """
    seed = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=seed)
    gradients = [torch.randn(shape, generator=seed) for _ in range(20)]
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    norm = Spectral("keller_jordan", 5, "bfloat16")
    options = {"lr": 0.02, "momentum": 0.95, "nesterov": nesterov, "weight_decay": weight_decay}
    a = steepest.Muon([ours], norm=norm, scale=scale, **options)
    b = torch.optim.Muon([theirs], adjust_lr_fn=adjust, **options)
    for g in gradients:
        ours.grad, theirs.grad = g.clone(), g.clone()
        a.step()
        b.step()
    torch.testing.assert_close(
        ours, theirs, rtol=0, atol=20 * torch.finfo(torch.float32).eps * start.abs().max().item()
    )
    buffers = a.state[ours]["momentum.buffer"], b.state[theirs]["momentum_buffer"]
    assert torch.equal(*buffers)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon")
def test_muon_in_one_batch_equals_torch_one_by_one() -> None:
    """Six matrices of one shape are stepped as one batch: baddbmm for addmm, which may round to another bfloat16."""
    seed = torch.Generator().manual_seed(0)
    start = [torch.randn(24, 16, generator=seed) for _ in range(6)]
    ours, theirs = [[nn.Parameter(t.clone()) for t in start] for _ in range(2)]
    a = steepest.Muon(ours, lr=0.02, norm=Spectral("keller_jordan", 5, "bfloat16"))
    b = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.0)
    for _ in range(10):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(24, 16, generator=seed)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=10 * 0.02 * 2**-6)  # a few 2^-8 of each of ten steps


# Shampoo. -------------------------------------------------------------------------------------------------------------


def inverse_fourth_root(s: Tensor) -> Tensor:
    w, v = torch.linalg.eigh(s)
    return (v * w**-0.25) @ v.mH


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)], ids=str)
def test_shampoo_first_steps(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Gupta, Koren and Singer, algorithm 1, with the eps of our convention: relative to the mean of the diagonal."""
    eps, lr, beta = 1e-4, 0.1, 0.9
    seed = torch.Generator().manual_seed(0)
    expected = torch.randn(shape, generator=seed, dtype=dtype)
    x = nn.Parameter(expected.clone())
    optimizer = steepest.Shampoo([x], lr=lr, eps=eps, momentum=beta)
    m, n = shape
    left, right = torch.zeros(m, m, dtype=dtype), torch.zeros(n, n, dtype=dtype)
    momentum = torch.zeros_like(expected)
    for _ in range(5):
        g = torch.randn(shape, generator=seed, dtype=dtype)
        x.grad = g.clone()
        optimizer.step()
        left, right = left + g @ g.mH, right + g.mH @ g
        damped = [s + eps * s.trace() / len(s) * torch.eye(len(s), dtype=s.dtype) for s in (left, right)]
        direction = inverse_fourth_root(damped[0]) @ g @ inverse_fourth_root(damped[1])
        momentum = beta * momentum + (1 - beta) * direction
        expected = expected - lr * momentum
        torch.testing.assert_close(x.detach(), expected, rtol=1e-10, atol=1e-10)  # eps^(-1/4) times rounding


def test_shampoo_first_step_is_muon() -> None:
    """Without eps and momentum the first L^(-1/4) G R^(-1/4) is U V^T (Bernstein and Newhouse 2024, 2409.20325)."""
    g = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    x = nn.Parameter(torch.zeros(4, 4, dtype=torch.float64))
    x.grad = g.clone()
    steepest.Shampoo([x], lr=1.0, eps=0.0, momentum=0.0).step()
    u, s, vt = torch.linalg.svd(g)
    torch.testing.assert_close(-x.detach(), u @ vt, rtol=1e-9, atol=1e-9 * (s[0] / s[-1]).item())


# geoopt's Riemannian SGD. ---------------------------------------------------------------------------------------------

MANIFOLDS = {
    "sphere": (Sphere(), (7,), lambda g: g.Sphere()),
    "stiefel": (Stiefel(), (7, 3), lambda g: g.EuclideanStiefel()),
    "square stiefel": (Stiefel(), (4, 4), lambda g: g.EuclideanStiefel()),
    "spd": (SPD(retraction="second_order"), (4, 4), lambda g: g.SymmetricPositiveDefinite()),
}


def compare_with_geoopt(name: str, steps: int, first_gradient_zero: bool = False, **options: Any) -> None:
    geoopt = pytest.importorskip("geoopt")
    manifold, shape, theirs = MANIFOLDS[name]
    seed = torch.Generator().manual_seed(0)
    start = manifold.random_point(shape, generator=seed, dtype=torch.float64)
    target = manifold.random_point(shape, generator=seed, dtype=torch.float64)
    weight = torch.randn(shape, generator=seed, dtype=torch.float64)
    x = nn.Parameter(start.clone())
    y = geoopt.ManifoldParameter(start.clone(), manifold=theirs(geoopt))
    a = steepest.SGD([{"params": [x], "geometry": manifold}], **options)
    b = geoopt.optim.RiemannianSGD([y], **options)
    for step in range(steps):
        for p, optimizer in ((x, a), (y, b)):
            optimizer.zero_grad()
            value = ((p - target).square() * weight.abs()).sum()
            (value * (step > 0 or not first_gradient_zero)).backward()
            optimizer.step()
        torch.testing.assert_close(x.detach(), y.detach(), rtol=1e-10, atol=1e-11)  # the same formulas, 20 times over


@pytest.mark.parametrize("name", MANIFOLDS)
def test_riemannian_sgd_equals_geoopt(name: str) -> None:
    compare_with_geoopt(name, 20, lr=0.02)


@pytest.mark.parametrize("nesterov", [False, True])
def test_riemannian_momentum_on_the_sphere_equals_geoopt(nesterov: bool) -> None:
    """On the sphere our carry is geoopt's transport, a projection. geoopt starts its buffer from the Euclidean gradient
    (not tangent), so that the first one is zero here."""
    compare_with_geoopt("sphere", 20, first_gradient_zero=True, lr=0.02, momentum=0.9, nesterov=nesterov)


def test_riemannian_momentum_on_stiefel_in_the_frame() -> None:
    """The first step with momentum is one without; after it, momentum stays in the coordinates of the frame:
    A is kept, and Z loses its part in the span of the new point. (geoopt projects X A + Z as a whole.)"""
    manifold, lr, beta = Stiefel(), 0.05, 0.9
    seed = torch.Generator().manual_seed(0)
    start = manifold.random_point((7, 3), generator=seed, dtype=torch.float64)
    gradients = [torch.randn(7, 3, generator=seed, dtype=torch.float64) for _ in range(20)]
    p = nn.Parameter(start.clone())
    optimizer = steepest.SGD([{"params": [p], "geometry": manifold}], lr=lr, momentum=beta)
    x, a, z = start, torch.zeros(3, 3, dtype=torch.float64), torch.zeros(7, 3, dtype=torch.float64)
    for g in gradients:
        p.grad = g.clone()
        optimizer.step()
        xg = x.mT @ g
        a, z = beta * a + (xg - xg.mT) / 2, beta * z + g - x @ xg
        q, r = torch.linalg.qr(x - lr * (x @ a + z))
        x = q * r.diagonal().sign()
        z = z - x @ (x.mT @ z)
        torch.testing.assert_close(p.detach(), x, rtol=1e-10, atol=1e-11)
