"""Coordinates of points of every manifold, mapped over batches, and the second derivative of their retractions."""

import pytest
import torch
from torch import nn

from steepest import SGD, Euclidean, FixedRank, Stiefel, testing
from steepest.curvature.coordinates import Coordinates, points_of
from steepest.curvature.lazy_newton import _bend
from steepest.manifolds.tensors import as_tuple
from steepest.optim import Constraint
from steepest.optim.point import Point

REAL = [(m, shape) for m, shape in testing.manifolds() if "real" in m.scalars]
COMPLEX = [(Stiefel(), (5, 2)), (FixedRank(), ((4, 2), (2, 3)))]


def place(manifold, shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = as_tuple(manifold.random_point(shape, dtype=dtype, generator=generator))
    params = tuple(nn.Parameter(t.clone()) for t in x)
    names = tuple(f"tensor {i}" for i in range(len(x)))
    return Coordinates([Point(params, names, Constraint(manifold, (None,) * len(x), {}))]), generator


def check(here, generator, count=4):
    h = torch.randn(count, here.size, generator=generator, dtype=torch.float64)
    g = [torch.randn(count, *p.shape, generator=generator, dtype=p.dtype) for p in here.params]
    v, pulled = torch.func.vmap(here.push)(h), torch.func.vmap(here.pull)(g)
    for i in range(count):  # as one by one, up to the order of sums
        torch.testing.assert_close(pulled[i], here.pull([t[i] for t in g]), rtol=1e-9, atol=1e-9)
        for one, batch in zip(here.push(h[i]), v, strict=True):
            torch.testing.assert_close(batch[i], one, rtol=1e-9, atol=1e-9)
        pairing = sum((a[i].conj() * b[i]).real.sum() for a, b in zip(g, v, strict=True))
        torch.testing.assert_close(pairing, pulled[i] @ h[i], rtol=1e-9, atol=1e-9)  # adjoint
        back = here.push(here.coords([t[i] for t in v]))
        for one, batch in zip(back, v, strict=True):
            torch.testing.assert_close(one, batch[i], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("manifold", "shape"), REAL, ids=str)
def test_every_manifold(manifold, shape):
    here, generator = place(manifold, shape)
    check(here, generator)
    if isinstance(manifold, Euclidean):
        return
    g = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in here.params]
    bend, eps = _bend(here, 0, g), 1e-4

    def along(h):
        with torch.no_grad():
            return sum((a * b).sum() for a, b in zip(g, as_tuple(here.moved(h)[0]), strict=True)).item()

    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        h = here.pull([torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in here.params])
        h = h / h.norm().clamp_min(1e-300)
        second = (along(eps * h) - 2 * along(0 * h) + along(-eps * h)) / eps**2
        found = 0.0 if bend is None else (h @ bend @ h).item()
        assert second == pytest.approx(found, abs=1e-4)  # eps^2 times a fourth derivative, 1e-15 / eps^2 of rounding


@pytest.mark.parametrize(("manifold", "shape"), COMPLEX, ids=str)
def test_complex_points(manifold, shape):
    check(*place(manifold, shape, torch.complex128))


def test_points_of_our_and_other_optimizers():
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    for optimizer in (SGD([layer.weight], lr=1.0), torch.optim.SGD(layer.parameters(), lr=1.0)):
        (point,) = points_of(optimizer)
        assert point.params[0] is layer.weight
        assert Coordinates([point]).flat
