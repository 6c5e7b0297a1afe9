"""Spheres and oblique manifolds: derivatives through coincident points, accuracy at both ends of the distance."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from steepest import Oblique, Sphere

CASES = [
    pytest.param(m, shape, dtype, id=f"{m}-{dtype}")
    for m, shape in [(Sphere(), (3,)), (Oblique(), (3, 2))]
    for dtype in (torch.float64, torch.complex128)
]


def setup(m, shape, dtype, length):
    """A point, coordinates of the given length on each slice, and a map from free coordinates to points near x."""
    x = m.random_point(shape, dtype=dtype)
    v = m.random_tangent(x)
    v = length * v / torch.linalg.vector_norm(v, dim=m.axis, keepdim=True)
    return x, v, lambda h: m.retract(x, m.push(x, h))


@pytest.mark.parametrize("length", [0.0, 0.3, 0.51, 2.1])
@pytest.mark.parametrize(("m", "shape", "dtype"), CASES)
def test_derivatives(m, shape, dtype, length):
    x, v, near = setup(m, shape, dtype, length)
    y = m.exp(x, v)
    zero = torch.zeros_like(x, requires_grad=True)
    h = torch.zeros_like(x, requires_grad=True)
    calls = {
        "exp": lambda h, k: m.exp(near(h), m.push(near(h), v + k)),
        "log": lambda h, k: m.log(near(h), m.project(y + k)),
    }
    if length:
        calls["dist"] = lambda h, k: m.dist(near(h), m.project(y + k))
    for call in calls.values():
        assert gradcheck(call, (h, zero))
        assert gradgradcheck(call, (h, zero), fast_mode=dtype.is_complex)  # along one random direction


def test_dist_is_smooth_where_one_column_coincides():
    m, x = Oblique(), Oblique().random_point((3, 2), dtype=torch.float64)
    y = torch.cat([x[:, :1], m.random_point((3, 1), dtype=torch.float64)], -1)
    f = lambda h: m.dist(x, m.retract(y, m.push(y, h)))  # noqa: E731
    h = torch.zeros_like(x, requires_grad=True)
    assert gradcheck(f, h)
    assert gradgradcheck(f, h)


@pytest.mark.parametrize("angle", [1e-9, 1e-4, 0.5, 0.51, 3.0, math.pi - 1e-4, math.pi - 1e-9])
def test_dist_is_accurate_close_and_far(angle):
    t = torch.tensor(angle, dtype=torch.float64)
    x, y = torch.tensor([1.0, 0.0]).double(), torch.stack([t.cos(), t.sin()])
    # the entries of y are rounded to eps
    torch.testing.assert_close(Sphere().dist(x, y), t, rtol=1e-12, atol=4e-16)


def test_antipodal_points():
    x = torch.tensor([0.6, 0.8], dtype=torch.float64)
    torch.testing.assert_close(Sphere().dist(x, -x).item(), math.pi)
    assert Sphere().log(x, -x).isnan().all()


@pytest.mark.parametrize("length", [1e-3, 1.0, 10.0, 1000.0])
def test_exp_in_single_precision(length):
    m = Sphere()
    x = m.random_point((100, 8), dtype=torch.float64)
    v = m.random_tangent(x)
    v = length * v / v.norm(dim=-1, keepdim=True)
    result = m.exp(x.float(), v.float())
    assert m.residual(result).max() < 4 * torch.finfo(torch.float32).eps * (1 + length)
    # the angle has the rounding of its length
    assert (result - m.exp(x, v)).abs().max() < 4 * torch.finfo(torch.float32).eps * (1 + length)


def test_complex_sphere_is_the_real_one_of_twice_the_dimension():
    real = lambda z: torch.view_as_real(z).flatten(-2)  # noqa: E731
    m = Sphere()
    x, y = (m.random_point((5, 3), dtype=torch.complex128) for _ in range(2))
    v = m.random_tangent(x)
    close = {"rtol": 1e-12, "atol": 1e-13}
    torch.testing.assert_close(m.dist(x, y), m.dist(real(x), real(y)), **close)
    torch.testing.assert_close(real(m.log(x, y)), m.log(real(x), real(y)), **close)
    torch.testing.assert_close(real(m.exp(x, v)), m.exp(real(x), real(v)), **close)
    torch.testing.assert_close(real(m.transport(x, y, v)), m.transport(real(x), real(y), real(v)), **close)
