"""Spectral-norm balls and spheres: projections by SVD, Lipschitz layers, derivatives at equal singular values."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from steepest import SGD, Muon, SpectralBall, SpectralSphere, constrain, param_groups

D, C = torch.float64, torch.complex128
SHAPES = [(4, 3), (3, 4), (3, 3), (4, 1), (1, 3), (1, 1)]
scalars = pytest.mark.parametrize("dtype", [D, C])


def randn(*shape, seed=0, dtype=D):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def point(m, *shape, seed=0, dtype=D):
    return m.random_point(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def with_values(values, m, n, dtype=D, seed=0):
    """A matrix with the singular values given."""
    u = torch.linalg.qr(randn(m, len(values), seed=seed, dtype=dtype)).Q
    v = torch.linalg.qr(randn(n, len(values), seed=seed + 1, dtype=dtype)).Q
    return (u * torch.tensor(values, dtype=u.real.dtype)) @ v.mH


def cut_by_svd(x, radius):
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    return (u * s.clamp_max(radius).unsqueeze(-2)) @ vh


# The ball. ------------------------------------------------------------------------------------------------------------


@scalars
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", [0.5, 1.0, 20.0])
def test_projection_cuts_singular_values(shape, radius, dtype):
    x = 3 * randn(2, *shape, dtype=dtype)
    m = SpectralBall(radius)
    for y in (m.project(x), m._move(0 * x, x)):
        torch.testing.assert_close(y, cut_by_svd(x, radius), rtol=1e-12, atol=1e-12)  # eps (|x| / r)^2 is about 1e-14


def test_projection_from_far_away():
    """Singular values up to 1e6 radii: what one pass leaves by rounding, 1e-16 times the square of that, the second
    takes away."""
    x = with_values([1e6, 3.0, 0.5], 5, 3)
    y = SpectralBall().project(x)
    assert SpectralBall().residual(y) < 1e-12
    torch.testing.assert_close(y, cut_by_svd(x, 1.0), rtol=0, atol=1e-3)  # 1e-16 * 1e12, over the gap of the values


def test_a_step_that_stays_inside_is_exact():
    x, h = point(SpectralBall(), 6, 4), 0.02 * randn(6, 4)
    assert torch.equal(SpectralBall().retract(x, h), x + h)


def test_repeated_steps_outwards_stay_in_the_ball():
    """float32, at the boundary with all singular values equal: the ball's corner."""
    x, m = torch.eye(5), SpectralBall()
    for seed in range(200):
        x = m.retract(x, 0.1 * x + 0.01 * randn(5, 5, seed=seed, dtype=torch.float32))
        assert m.residual(x) < 1e-6


def test_straight_lines_end_at_the_boundary():
    m, x = SpectralBall(2.0), torch.eye(3)
    v = torch.stack([0.5 * x, 1.0 * x, 1.5 * x])
    y = m.exp(x.expand(3, 3, 3), v)
    torch.testing.assert_close(y[:2], x + v[:2])
    assert y[2].isnan().all()


@scalars
@pytest.mark.parametrize(
    "values", [[0.9, 0.5, 0.1], [0.5, 0.5, 0.5], [2.0, 2.0, 0.5], [3.0, 2.0, 1.5], [0.0, 0.0, 0.0]]
)
def test_derivatives_of_the_step(values, dtype):
    """Inside, outside, and where singular values are equal or zero; only at the boundary itself is there no
    derivative."""
    x = with_values(values, 4, 3, dtype).requires_grad_()
    move = lambda x: SpectralBall()._move(x, torch.zeros_like(x))  # noqa: E731
    for function in (move, lambda x: move(x.mH), SpectralBall().project):
        assert gradcheck(function, (x,))
        assert gradgradcheck(function, (x,), fast_mode=True)


@scalars
def test_derivatives_of_the_flat_operations(dtype):
    m = SpectralBall(3.0)
    x, v = point(m, 3, 2, dtype=dtype).requires_grad_(), (0.3 * randn(3, 2, dtype=dtype)).requires_grad_()
    for function in (m.exp, m.log, m.dist):
        assert gradcheck(function, (x, v))
        assert gradgradcheck(function, (x, v))
    assert gradcheck(m.mean, (torch.stack([x, v, v / 2]).detach().requires_grad_(),), fast_mode=True)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_descent_finds_the_nearest_point(momentum):
    """Of t in the ball, by descent on |x - t|^2: the projection of t."""
    target, m = with_values([3.0, 1.5, 0.5], 5, 3), SpectralBall()
    x = torch.nn.Parameter(point(m, 5, 3))
    optimizer = SGD([{"params": [x], "geometry": m, "role": "point"}], lr=0.2, momentum=momentum)
    for _ in range(200):
        x.grad = x.detach() - target
        optimizer.step()
    torch.testing.assert_close(x.detach(), cut_by_svd(target, 1.0), rtol=0, atol=1e-10)


def test_a_network_keeps_its_lipschitz_bound():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    for k in (0, 2):
        constrain(net[k], "weight", SpectralBall(), project=True)
    optimizer = Muon(param_groups(net), lr=0.1)
    data, other = randn(64, 4, dtype=torch.float32), randn(64, 4, seed=1, dtype=torch.float32)
    for _ in range(60):
        optimizer.zero_grad()
        (net(data).squeeze() - 10 * data.sum(1)).square().mean().backward()
        optimizer.step()
    ratio = (net(data) - net(other)).squeeze().abs() / torch.linalg.vector_norm(data - other, dim=1)
    assert ratio.max() <= 1 + 1e-5
    assert torch.linalg.matrix_norm(net[2].weight, 2) > 0.99  # the bound is active


# The sphere. ----------------------------------------------------------------------------------------------------------


@scalars
@pytest.mark.parametrize("shape", SHAPES)
def test_normal_and_retraction(shape, dtype):
    m = SpectralSphere(2.0)
    x = point(m, 2, *shape, dtype=dtype)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    torch.testing.assert_close(s[..., 0], torch.full((2,), 2.0, dtype=D))
    assert shape[0] == 1 or shape[1] == 1 or s[..., 1].max() <= 1 + 1e-12  # the others are halved
    torch.testing.assert_close(m.frame(x).normal, u[..., :1] @ vh[..., :1, :], rtol=0, atol=1e-12)
    y = x + m.push(x, randn(2, *shape, seed=1, dtype=dtype))
    torch.testing.assert_close(m.retract(x, y - x), 2 * y / torch.linalg.matrix_norm(y, 2, keepdim=True))


def test_the_gradient_is_that_of_the_norm():
    x = point(SpectralSphere(), 4, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(torch.linalg.matrix_norm(x, 2), x)
    torch.testing.assert_close(SpectralSphere().frame(x.detach()).normal, gradient, rtol=0, atol=1e-13)


@scalars
def test_projection_to_the_sphere(dtype):
    """From outside all that is too long is cut, from inside the longest is raised."""
    m = SpectralSphere(1.0)
    for values, expected in (([3.0, 2.0, 0.5], [1.0, 1.0, 0.5]), ([0.6, 0.3, 0.1], [1.0, 0.3, 0.1])):
        x = with_values(values, 4, 3, dtype)
        torch.testing.assert_close(m.project(x), with_values(expected, 4, 3, dtype), rtol=0, atol=1e-12)


def test_an_edge_has_a_mean_normal():
    normal = SpectralSphere().frame(torch.eye(3, dtype=D)).normal
    torch.testing.assert_close(normal, torch.eye(3, dtype=D) / 3**0.5)
    x = SpectralSphere().retract(torch.eye(3, dtype=D), 0.1 * randn(3, 3))
    assert SpectralSphere().residual(x) < 1e-14


@scalars
@pytest.mark.parametrize("values", [[2.0, 0.5, 0.5], [2.0, 0.0, 0.0], [2.0, 1.0, 0.3]])
def test_derivatives_on_the_sphere(values, dtype):
    """Equal smaller singular values, and zeros, do no harm: only the gap below the largest counts."""
    m = SpectralSphere(2.0)
    x, v = with_values(values, 4, 3, dtype).requires_grad_(), (0.3 * randn(4, 3, seed=5, dtype=dtype)).requires_grad_()
    for function in (m.push, lambda x, v: m._move(m.frame(x), v), lambda x, v: m.frame(x + v).normal):
        assert gradcheck(function, (x, v))
        assert gradgradcheck(function, (x, v), fast_mode=True)


def test_derivatives_of_geodesics_on_the_sphere():
    m = SpectralSphere(2.0)
    x0 = point(m, 2, 2)
    at = lambda h: m.retract(x0, m.push(x0, h))  # noqa: E731
    end = lambda h, v: m.exp(at(h), m.push(at(h), v))  # noqa: E731
    for v in (0.2 * randn(2, 2, seed=3), torch.zeros(2, 2, dtype=D)):
        assert gradcheck(end, ((0.2 * randn(2, 2, seed=2)).requires_grad_(), v.requires_grad_()), fast_mode=True)


def test_a_column_is_on_the_round_sphere():
    """With one column the spectral norm is the Euclidean one, and geodesics are great circles."""
    m = SpectralSphere()
    x = point(m, 3, 1)
    v = m.push(x, randn(3, 1, seed=1))
    t = v.norm()
    torch.testing.assert_close(m.exp(x, v), x * t.cos() + v * t.sin() / t, rtol=0, atol=1e-11)  # as it is integrated


# Both. ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [SpectralBall(), SpectralSphere()])
def test_functional_transforms(m):
    x, h = point(m, 3, 4, 2), randn(3, 4, 2, seed=1)
    step = lambda x, h: m.retract(x, m.push(x, h))  # noqa: E731
    torch.testing.assert_close(torch.vmap(step)(x, h), step(x, h))
    torch.testing.assert_close(torch.vmap(step, (None, 0))(x[0], h), step(x[0].expand_as(x), h))
    _, tangent = torch.func.jvp(lambda h: step(x, h), (0 * h,), (h,))
    torch.testing.assert_close(tangent, m.push(x, h))


@pytest.mark.parametrize("m", [SpectralBall, SpectralSphere])
def test_refusals(m):
    with pytest.raises(ValueError, match="radius: got 0"):
        m(0.0)
    with pytest.raises(ValueError, match="radius: got nan"):
        m(float("nan"))
    with pytest.raises(ValueError, match=r"w: .*matrix with at least one entry"):
        m().check_point(torch.zeros(3), "w")
    assert m().residual(torch.tensor([[torch.nan, 1.0]])).isnan()
