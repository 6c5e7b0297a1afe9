"""Special facts about tensors of fixed multilinear rank."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from steepest import SGD, Adam, Muon, Shampoo, Tucker
from steepest.norms import Spectral
from steepest.testing.manifold import Case

THREE = Tucker(3)
SHAPE = ((2, 3, 2), (5, 2), (4, 3), (3, 2))
DTYPES = [torch.float64, torch.complex128]


def another_tuple(x, seed=3):
    """The same tensor by other bases."""
    core, *factors = x
    g = torch.Generator().manual_seed(seed)
    turned = []
    for i, u in enumerate(factors):
        q = torch.linalg.qr(torch.randn(u.shape[-1], u.shape[-1], generator=g, dtype=u.dtype))[0]
        core, turned = THREE._times(core, q.mH, i), [*turned, u @ q]
    return (core, *turned)


@pytest.mark.parametrize("dtype", DTYPES)
def test_retraction_is_of_second_order(dtype):
    """It leaves the geodesic with t^3."""
    case = Case(THREE, SHAPE, dtype=dtype)
    x, v = case.point(), case.tangent(case.point())

    def error(t):
        step = tuple(t * a for a in v)
        gap = THREE.represent(THREE.retract(x, step)) - THREE.represent(THREE.exp(x, step))
        return torch.linalg.vector_norm(gap).item()

    assert math.log2(error(0.2) / error(0.1)) > 2.8


def test_retraction_does_not_see_the_bases():
    x = Case(THREE, SHAPE).point()
    c = torch.randn(5, 4, 3, dtype=torch.float64)
    ends = []
    for z in (x, another_tuple(x)):
        g = torch.func.grad(lambda z: (THREE.represent(z) * c).sum())(z)
        ends.append(THREE.represent(THREE.retract(z, THREE.grad(z, g))))
    assert (ends[0] - ends[1]).abs().max() < 1e-12


@pytest.mark.parametrize("size", [0.0, pytest.param(0.3, marks=pytest.mark.slow)])
def test_exp_and_retraction_have_two_derivatives(size):
    case = Case(THREE, ((1, 2, 2), (2, 1), (3, 2), (2, 2)))
    x = case.point()
    t = torch.tensor(size, dtype=torch.float64, requires_grad=True)
    for move in (THREE.exp, THREE.retract):

        def end(t, move=move):
            v = tuple(t * a + t**2 * b for a, b in zip(case.tangent(x), case.tangent(x, 7), strict=True))
            w = THREE.represent(move(x, v))
            return (w * torch.linspace(1, 2, w.numel(), dtype=w.dtype).reshape(w.shape)).sum()

        assert gradcheck(end, t)
        assert gradgradcheck(end, t)


@pytest.mark.parametrize("dtype", DTYPES)
def test_from_tensor(dtype):
    x = Case(THREE, SHAPE, dtype=dtype).point()
    w = THREE.represent(x)
    y = THREE.from_tensor(w, (2, 3, 2))
    THREE.check_point(y)
    assert (THREE.represent(y) - w).abs().max() < 1e-13
    batch = THREE.from_tensor(torch.stack([w, 2 * w]), (2, 3, 2))
    assert (THREE.represent(batch)[1] - 2 * w).abs().max() < 1e-13
    noise = torch.randn(5, 4, 3, dtype=dtype)
    tails = sum((torch.linalg.svdvals(THREE._unfold(noise, i))[r:] ** 2).sum() for i, r in enumerate((2, 3, 2)))
    error = torch.linalg.vector_norm(THREE.represent(THREE.from_tensor(noise, (2, 3, 2))) - noise)
    assert error**2 <= tails  # De Lathauwer, De Moor and Vandewalle 2000, property 10


def test_refusals():
    for order in (1, 2.0, True, 99):
        with pytest.raises(ValueError, match="order"):
            Tucker(order)
    with pytest.raises(ValueError, match="ranks: rank r1 = 3"):
        THREE.from_tensor(torch.randn(4, 4, 4), (3, 1, 2))
    with pytest.raises(ValueError, match="ranks"):
        THREE.from_tensor(torch.randn(4, 4), (2, 2, 2))
    x = Case(THREE, SHAPE).point()
    assert "factor 2" in THREE.shape_error((x[0], x[1], x[1], x[3]))
    assert "expected" in THREE.shape_error((x[0][0], *x[1:]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("small", [0.0, 1e-9])
def test_lost_rank(dtype, small):
    """A core whose slice has gone: coordinates stay bounded by the gradient of X, and the step descends."""
    core, *factors = Case(THREE, SHAPE).point(dtype=dtype)
    c = torch.randn(5, 4, 3, dtype=dtype)
    for scale in (torch.tensor([1.0, small]), torch.tensor([small, 1.0]), torch.zeros(2)):
        x = (core * scale.to(dtype)[:, None, None], *factors)
        g = torch.func.grad(lambda x: (c * THREE.represent(x)).sum())(x)
        h = THREE.pull(x, g)
        assert all(torch.linalg.vector_norm(b) < 3 * torch.linalg.vector_norm(c) for b in h)
        y = THREE.retract(x, THREE.push(x, tuple(-0.1 * b for b in h)))
        THREE.check_point(y)
        assert (c * (THREE.represent(y) - THREE.represent(x))).sum() < 0
    nothing = THREE.pull(x, tuple(0 * t for t in x))
    assert all(b.abs().max() == 0 for b in nothing)


EXACT = Spectral("exact")
MAKERS = {
    "sgd": (lambda p, lr: SGD(p, lr), 1.0),
    "momentum": (lambda p, lr: SGD(p, lr, momentum=0.9), 0.3),
    "muon": (lambda p, lr: Muon(p, lr, norm=EXACT), 1.0),
    "adam": (lambda p, lr: Adam(p, lr), 1.0),
    "shampoo": (lambda p, lr: Shampoo(p, lr), 3.0),
}


def completion(x, make, lr, steps=250):
    """Losses of completing a 12 x 10 x 8 tensor of rank (2, 2, 2) from half of its entries."""
    g = torch.Generator().manual_seed(0)
    shape = ((2, 2, 2), (12, 2), (10, 2), (8, 2))
    target = THREE.represent(THREE.random_point(shape, generator=g, dtype=torch.float64))
    observed = (torch.rand(12, 10, 8, generator=g) < 0.5).double()
    params = [torch.nn.Parameter(t.clone()) for t in x]
    optimizer = make([{"params": params, "geometry": THREE, "role": "point"}], lr)
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        loss = ((THREE.represent(tuple(params)) - target) * observed).square().sum() / 2
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert THREE.residual(tuple(p.detach() for p in params)) < 1e-12
    return torch.tensor(losses), (THREE.represent(tuple(params)) - target).detach().abs().max()


def start(scale=0.1):
    shape = ((2, 2, 2), (12, 2), (10, 2), (8, 2))
    core, *factors = THREE.random_point(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (scale * core, *factors)


@pytest.mark.parametrize("name", MAKERS)
def test_completion(name):
    make, lr = MAKERS[name]
    losses, error = completion(start(), make, lr)
    assert losses[-1] < 1e-6 * losses[0], (losses[0], losses[-1], error)
    assert error < 0.05  # entries are about one


@pytest.mark.parametrize("name", ["sgd", "momentum"])
def test_the_path_does_not_see_the_bases(name):
    make, lr = MAKERS[name]
    one, _ = completion(start(), make, lr, 60)
    two, _ = completion(another_tuple(start()), make, lr, 60)
    assert ((one - two).abs() / one).max() < 1e-7  # rounding of 1e-16, grown in 60 steps
