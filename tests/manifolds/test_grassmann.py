"""Subspaces: right angles, large steps, single precision, derivatives at coincident subspaces."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from steepest import Grassmann

DTYPES = [torch.float64, torch.complex128]


def at_angles(angles, n=7, dtype=torch.float64):
    """Two bases of subspaces with the given principal angles, in a random position, and bases mixed."""
    t = torch.tensor(angles, dtype=torch.float64)
    p = len(angles)
    cosine, sine = t.cos(), t.sin()
    cosine[t == math.pi / 2] = 0
    frame = torch.linalg.qr(torch.randn(n, n, dtype=dtype)).Q
    mix = [torch.linalg.qr(torch.randn(p, p, dtype=dtype)).Q for _ in range(2)]
    x, u = frame[:, :p], frame[:, p : 2 * p]
    return x @ mix[0], (x * cosine + u * sine) @ mix[1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("angles", [(math.pi / 2, 0.3), (math.pi / 2, math.pi / 2), (math.pi / 2, 0.0, math.pi / 2)])
def test_log_over_right_angles_is_a_shortest_geodesic(angles, dtype):
    m = Grassmann()
    x, y = at_angles(angles, dtype=dtype)
    v = m.log(x, y)
    length = torch.tensor(angles, dtype=torch.float64).norm()
    # a cosine of eps in place of zero, divided by nothing small
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(m.norm(x, v), length, **close)
    torch.testing.assert_close(m.dist(x, y), length, **close)
    torch.testing.assert_close(m.represent(m.exp(x, v)), m.represent(y), **close)
    torch.testing.assert_close(x.mH @ v, torch.zeros_like(x.mH @ v), **close)
    moved = m.transport(x, y, v)
    torch.testing.assert_close(m.norm(y, moved), length, **close)


def test_log_where_axes_are_exactly_orthogonal():
    x, y = torch.eye(5, dtype=torch.float64)[:, :2], torch.eye(5, dtype=torch.float64)[:, 2:4]
    v = Grassmann().log(x, y)
    torch.testing.assert_close(Grassmann().represent(Grassmann().exp(x, v)), y @ y.mT, rtol=0, atol=1e-15)
    torch.testing.assert_close(torch.linalg.svdvals(v), torch.full((2,), math.pi / 2, dtype=torch.float64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("angles", [(0.0, 0.0), (0.4, 0.4), (1.2, 0.0), (0.9, 0.2)])
def test_derivatives(angles, dtype):
    m = Grassmann()
    x, y = at_angles(angles, n=4, dtype=dtype)
    v = m.log(x, y)
    h, k = (torch.zeros_like(x, requires_grad=True) for _ in range(2))
    start, end = (lambda h: m.retract(x, m.push(x, h))), (lambda k: m.retract(y, m.push(y, k)))
    calls = [
        lambda h, k: m.exp(start(h), m.push(start(h), v + k)),
        lambda h, k: m.log(start(h), end(k)),
    ]
    if sum(angles):
        calls.append(lambda h, k: m.dist(start(h), end(k)))
    for call in calls:
        assert gradcheck(call, (h, k), fast_mode=dtype.is_complex)
        assert gradgradcheck(call, (h, k), fast_mode=True)  # along one random direction


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float32, 2.0**-23), (torch.float64, 2.0**-52)])
@pytest.mark.parametrize("size", [1e-4, 1.0, 30.0, 300.0])
def test_exp_is_orthonormal_and_right_at_any_length(dtype, eps, size):
    m = Grassmann()
    x = m.random_point((40, 9, 4), dtype=torch.float64).to(dtype).double()
    x = m.project(x)
    v = m.random_tangent(x)
    v[..., 1:] *= 1e-3  # small angles beside large ones: their squares are summed in one Gram matrix
    v = size * v / torch.linalg.matrix_norm(v, 2, keepdim=True)
    y = m.exp(x.to(dtype), v.to(dtype))
    assert m.residual(y.double()).max() < 20 * eps
    u, s, vh = torch.linalg.svd(v, full_matrices=False)
    oracle = ((x @ vh.mT) * s.cos().unsqueeze(-2) + u * s.sin().unsqueeze(-2)) @ vh
    assert (y - oracle).abs().max() < 20 * eps * (1 + size**2)  # the rounding of V^H V


def test_log_and_dist_in_single_precision():
    m = Grassmann()
    for angles in [(1e-3, 0.5), (1.5, 0.1), (0.7, 0.7), (1.57, 1e-4)]:
        x, y = at_angles(angles)
        eps = torch.finfo(torch.float32).eps
        # the entries of x and y are rounded to eps; the nearer a right angle the less is the direction known
        assert abs(m.dist(x.float(), y.float()) - m.dist(x, y)) < 20 * eps
        assert (m.log(x.float(), y.float()) - m.log(x, y)).abs().max() < 20 * eps / math.cos(max(angles))


def test_whole_space_is_one_point():
    m = Grassmann()
    x, y = (m.random_point((3, 3), dtype=torch.float64) for _ in range(2))
    assert m.dim((3, 3)) == 0
    assert m.dist(x, y) < 1e-14


def test_retractions_of_second_order_span_what_the_geodesic_does():
    x = Grassmann().random_point((7, 3), dtype=torch.complex128)
    v = Grassmann().random_tangent(x)
    v = v / v.norm()
    for retraction in ("qr", "polar", "exp"):
        m = Grassmann(retraction)
        gap = lambda t: m.dist(m.retract(x, t * v), m.exp(x, t * v)).item()  # noqa: B023, E731
        assert gap(1e-2) <= max(1e-6, 1e-13)
        if retraction != "exp":
            assert math.log(gap(4e-2) / gap(1e-2), 4) > 2.9


def test_unknown_retraction_is_refused():
    with pytest.raises(ValueError, match="retraction: unknown 'svd', expected one of qr, polar, exp"):
        Grassmann("svd")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex128])
@pytest.mark.parametrize(
    "angles",
    [
        (0, 0, 0),
        (1e-9, 1e-9, 2e-9),
        (1e-9, 0.3, 1.0),
        (1e-4, 1.2, 1.5707),
        (0.1, 0.2, math.pi / 2 - 1e-9),
        (0.7, 0.8, 0.9),
        (1, 1.2, 1.4),
        (math.pi / 2 - 1e-9, 1.3, 1.4),
        (math.pi / 2,) * 3,
    ],
)
def test_dist_and_log_of_given_angles(angles, dtype):
    """dist is accurate to a few eps of itself, and log as long, at tiny, mixed and right angles."""
    real = torch.float64 if dtype == torch.complex128 else dtype
    t = torch.tensor(angles, dtype=torch.float64)
    q = torch.linalg.qr(torch.randn(9, 6, dtype=dtype if dtype.is_complex else torch.float64))[0]
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=q.dtype))[0]
    x, y = q[:, :3], (q[:, :3] * t.cos() + q[:, 3:] * t.sin()) @ turn
    small = torch.finfo(real).eps * 16  # rounding of the bases themselves
    found, expected = Grassmann().dist(x.to(dtype), y.to(dtype)), torch.linalg.vector_norm(t).to(real)
    torch.testing.assert_close(found, expected, rtol=8 * torch.finfo(real).eps, atol=small)
    v = Grassmann().log(x.to(dtype), y.to(dtype))
    torch.testing.assert_close(torch.linalg.matrix_norm(v), expected, rtol=8 * torch.finfo(real).eps, atol=small)
    end, there = Grassmann().exp(x.to(dtype), v), y.to(dtype)
    assert (Grassmann().represent(end) - Grassmann().represent(there)).abs().max() < small
