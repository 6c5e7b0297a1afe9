"""Stiefel and its generalisation: geodesics of every metric, the logarithm near and far, retractions, derivatives."""

import json
import math
import warnings

import pytest
import scipy.linalg
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from steepest import GeneralizedStiefel, Stiefel
from steepest.manifolds import Manifold
from steepest.manifolds.geodesic import ConvergenceWarning
from steepest.manifolds.stiefel import METRICS, RETRACTIONS

CLOSE = {"rtol": 1e-10, "atol": 1e-11}  # some hundred operations on entries near one
ALPHAS = ["euclidean", "canonical", 1.0, -0.8]
KINDS = ["dense", "low rank", "tilt", "turn"]
DTYPES = [torch.float64, torch.complex128]
B = torch.tensor([[2.0, 0.5, 0.0, 0.3], [0.5, 1.0, 0.2, 0.0], [0.0, 0.2, 1.5, 0.4], [0.3, 0.0, 0.4, 0.7]]).double()


def number(metric):
    return METRICS[metric] if isinstance(metric, str) else metric


def expm(a):
    return torch.from_numpy(scipy.linalg.expm(a.numpy()))


def seeded(shape, seed, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def tangent(m, x, length, seed=0, kind="dense"):
    """A tangent vector of that length: dense, of few directions, or nearly within or out of the span."""
    n, p = x.shape[-2:]
    a, z = (seeded((*x.shape[:-2], k, p), seed + k, x.dtype) for k in (p, n))
    if kind == "low rank":
        left, right = (seeded((*x.shape[:-2], k, 1), seed + 7 * k, x.dtype) for k in (n, p))
        a, z = x.mH @ left @ right.mH, left @ right.mH
    a, z = (a / 20, z) if kind == "tilt" else (a, z / 20) if kind == "turn" else (a, z)
    v = m.push(x, (a, z))
    return v * (length / m.norm(x, v))[..., None, None]


# Metric and geodesics. ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", ALPHAS)
def test_inner_product_of_the_family(metric, dtype):
    m, alpha = Stiefel(metric), number(metric)
    x = m.random_point((6, 3), dtype=dtype)
    u, v = m.random_tangent(x), m.random_tangent(x)
    middle = torch.eye(6, dtype=dtype) - (2 * alpha + 1) / (2 * (alpha + 1)) * x @ x.mH
    torch.testing.assert_close(m.inner(x, u, v), torch.trace(u.mH @ middle @ v).real, **CLOSE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 3), (5, 4), (4, 4), (5, 1)])
@pytest.mark.parametrize("metric", ALPHAS)
@pytest.mark.parametrize("length", [2.0, 0.05])
def test_exp_is_the_formula_in_size_n(length, metric, shape, dtype):
    """Zimmermann and Hueper 2022, with two exponentials of which one is n x n; by scipy, since torch's own is wrong for
    some small matrices."""
    m, alpha = Stiefel(metric), number(metric)
    x = m.random_point(shape, dtype=dtype)
    v = tangent(m, x, torch.tensor(length))
    a = x.mH @ v
    big = v @ x.mH - x @ v.mH - (2 * alpha + 1) / (alpha + 1) * x @ a @ x.mH
    oracle = expm(big) @ x @ expm(alpha / (1 + alpha) * a)
    torch.testing.assert_close(m.exp(x, v), oracle, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("metric", ALPHAS)
def test_exp_is_smooth_at_zero_in_single_precision(metric, dtype):
    """Its first two derivatives along v are those of the formula in size n."""
    m = Stiefel(metric)
    x = m.random_point((5, 2), dtype=dtype)
    v = m.random_tangent(x)
    zero, one = torch.zeros(()), torch.ones(())
    velocity = lambda t: torch.func.jvp(lambda t: m.exp(x, t * v), (t,), (one,))[1]  # noqa: E731
    speed, force = torch.func.jvp(velocity, (zero,), (one,))
    a, alpha = x.mH @ v, number(metric)
    d = v @ x.mH - x @ v.mH - (2 * alpha + 1) / (alpha + 1) * x @ a @ x.mH
    e = alpha / (1 + alpha) * a
    close = {"rtol": 1e-4, "atol": 1e-5}  # single precision, terms of size ten
    torch.testing.assert_close(speed, v, **close)
    torch.testing.assert_close(force, d @ d @ x + 2 * d @ x @ e + x @ e @ e, **close)


# Logarithm. -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.differing_executors], derandomize=True)
@given(
    p=st.integers(1, 9),
    extra=st.integers(1, 12),
    distance=st.floats(1e-7, 0.9),
    metric=st.sampled_from(["euclidean", "canonical"]),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 10**6),
)
def test_log_is_the_inverse_of_exp_below_the_injectivity_radius(p, extra, distance, metric, kind, dtype, seed):
    """Up to 0.9 pi v itself is found; on complex points of the canonical metric up to 0.9 pi / sqrt 2, as there the
    circles X exp(i t) e_1 e_1^H close after the length 2 pi / sqrt 2. The condition of the problem is some hundred at
    most."""
    m = Stiefel(metric)
    if dtype.is_complex and metric == "canonical":
        distance /= math.sqrt(2)
    x = torch.linalg.qr(seeded((p + extra, p), seed, dtype))[0]
    v = tangent(m, x, torch.tensor(distance * math.pi), seed, kind)
    y = m.exp(x, v)
    found = m.log(x, y)
    torch.testing.assert_close(found, v, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(m.exp(x, found), y, rtol=0, atol=1e-11)


@pytest.mark.parametrize("metric", ["euclidean", "canonical"])
@pytest.mark.parametrize("shape", [(30, 20), (50, 20), (120, 50)])
def test_log_of_many_columns(metric, shape):
    m = Stiefel(metric)
    x = m.random_point((2, *shape), dtype=torch.float64)
    v = torch.stack(
        [tangent(m, x[i], torch.tensor(0.9 * math.pi), i, kind) for i, kind in enumerate(("dense", "turn"))]
    )
    torch.testing.assert_close(m.log(x, m.exp(x, v)), v, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", ALPHAS)
@pytest.mark.parametrize("shape", [(4, 1), (3, 2), (7, 3), (10, 4)])
def test_points_anywhere_are_joined_by_a_geodesic(metric, shape, dtype):
    m = Stiefel(metric)
    x, y = (torch.linalg.qr(seeded((5, *shape), seed, dtype))[0] for seed in (0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        v = m.log(x, y)
    torch.testing.assert_close(m.exp(x, v), y, rtol=0, atol=1e-11)


def test_no_shorter_geodesic_from_fifty_starts():
    """Between random points of St(5, 2): what log finds against what Gauss and Newton's method, with the derivative by
    autograd in size n, finds from random starts."""
    m = Stiefel()
    x, y = (torch.linalg.qr(seeded((8, 5, 2), seed))[0].expand(50, 8, 5, 2) for seed in (0, 1))
    h = seeded((50, 8, 14), 2)

    def tangent_vector(h, x):
        return m.push(x, (h[..., :4].unflatten(-1, (2, 2)), h[..., 4:].unflatten(-1, (5, 2))))

    def end(h, x):
        return m.exp(x, tangent_vector(h, x)).flatten(-2)

    jacobian = torch.func.vmap(torch.func.vmap(torch.func.jacfwd(end)))
    for _ in range(20):
        gap = y.flatten(-2) - end(h, x)
        step = (torch.linalg.pinv(jacobian(h, x), rtol=1e-6) @ gap.unsqueeze(-1)).squeeze(-1)
        h = h + step / (1 + step.norm(dim=-1, keepdim=True) / 2)
    hit = (end(h, x) - y.flatten(-2)).abs().amax(-1) < 1e-9
    rival = torch.where(hit, m.norm(x, tangent_vector(h, x)), torch.inf).amin(0)
    assert hit.any(0).all()
    assert (m.dist(x[0], y[0]) < rival + 1e-9).all()


@pytest.mark.parametrize("shape", [(5, 2), (4, 3), (9, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex128])
def test_log_of_the_same_point(shape, dtype):
    """The gap is rounding, with no tangent part to follow; beside a gap that is not."""
    m = Stiefel()
    x = m.random_point((20, *shape), dtype=dtype)
    assert m.log(x, x).abs().max() < 50 * torch.finfo(dtype).eps
    y = x.clone()
    y[0] = m.retract(x[0], m.random_tangent(x[0]))
    v = m.log(x, y)
    torch.testing.assert_close(m.exp(x, v), y, rtol=0, atol=100 * torch.finfo(dtype).eps)


def test_opposite_points():
    """A tangent vector points nowhere in particular: any great circle will do."""
    m = Stiefel()
    x = m.random_point((6, 4, 1), dtype=torch.float64)
    v = m.log(x, -x)
    torch.testing.assert_close(m.norm(x, v), torch.full((6,), math.pi, dtype=torch.float64), **CLOSE)
    torch.testing.assert_close(m.exp(x, v), -x, **CLOSE)


def test_log_says_where_there_is_none():
    m = Stiefel()
    x = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    y = torch.stack([torch.diag(torch.tensor([1.0, 1.0, -1.0])).double(), torch.eye(3).double()])
    with pytest.warns(ConvergenceWarning, match="of 2 pairs of points, 1"):
        v = m.log(x, y)
    assert m.dist(x, y).tolist() == [math.inf, 0]
    assert v[0].isnan().all()
    assert (v[1] == 0).all()


def test_nan_stays_where_it_is():
    m = Stiefel("canonical")
    x = m.random_point((3, 6, 2), dtype=torch.float64)
    y = m.retract(x, 0.3 * m.random_tangent(x))
    bad = y.clone()
    bad[1, 0, 0] = torch.nan
    with pytest.warns(ConvergenceWarning, match="1 of 3"):
        v = m.log(x.requires_grad_(), bad)
    assert v[1].isnan().all()
    torch.testing.assert_close(v[[0, 2]], m.log(x, y)[[0, 2]], **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("shape", [(30, 5), (7, 5), (4, 4)])
def test_log_in_single_precision(shape, dtype):
    m = Stiefel("canonical")
    x = m.random_point((4, *shape), dtype=dtype)
    v = tangent(m, x, torch.tensor(2.5))
    found = m.log(x, m.exp(x, v))
    assert found.dtype == dtype
    torch.testing.assert_close(found, v, rtol=0, atol=5e-6)  # eps times the condition, about ten


# Retractions. ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", ALPHAS)
def test_cayley_is_the_transform_in_size_n(metric, dtype):
    """(I - W / 2)^-1 (I + W / 2) X for the skew W with W X = V (Wen and Yin 2013)."""
    m = Stiefel(metric, "cayley")
    x = m.random_point((6, 3), dtype=dtype)
    v = tangent(m, x, torch.tensor(1.5))
    half = v - x @ (x.mH @ v) / 2
    w = half @ x.mH - x @ half.mH
    eye = torch.eye(6, dtype=dtype)
    torch.testing.assert_close(m.retract(x, v), torch.linalg.solve(eye - w / 2, (eye + w / 2) @ x), **CLOSE)


@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_no_retraction_drifts(retraction, dtype):
    m = Stiefel("canonical", retraction)
    x = m.random_point((20, 4), dtype=dtype)
    for _ in range(200):
        x = m.retract(x, 0.5 * m.random_tangent(x) / 4)
    assert m.residual(x) < 3e-6  # a few eps, as after one step


@pytest.mark.parametrize("metric", ALPHAS)
def test_cayley_and_exp_agree_to_third_order(metric):
    """The Cayley transform is the geodesic of the canonical metric to second order (Wen and Yin 2013)."""
    x = Stiefel().random_point((6, 3), dtype=torch.float64)
    v = Stiefel().random_tangent(x)
    gap = [
        (Stiefel(metric, "cayley").retract(x, t * v) - Stiefel("canonical").exp(x, t * v)).norm() for t in (1e-2, 5e-3)
    ]
    assert 7.5 < gap[0] / gap[1] < 8.5


def test_exp_retraction_is_exp():
    m = Stiefel(0.3, "exp")
    x = m.random_point((6, 3), dtype=torch.float64)
    v = m.random_tangent(x)
    torch.testing.assert_close(m.retract(x, v), m.exp(x, v), **CLOSE)


# Derivatives. ---------------------------------------------------------------------------------------------------------


def charted(m, x0):
    """Coordinates -> a point near x0: so that what is perturbed stays on the manifold."""
    return lambda a, z: m.retract(x0, m.push(x0, (a, z)))


@pytest.mark.parametrize(
    ("metric", "shape", "dtype"),
    [
        ("euclidean", (4, 2), torch.float64),
        ("canonical", (3, 2), torch.float64),
        pytest.param(1.0, (4, 2), torch.float64, marks=pytest.mark.slow),
        pytest.param(0.3, (3, 1), torch.complex128, marks=pytest.mark.slow),
        pytest.param("canonical", (2, 2), torch.float64, marks=pytest.mark.slow),
        ("euclidean", (2, 2), torch.complex128),
    ],
)
@pytest.mark.parametrize("place", ["apart", "coincident"])
def test_derivatives_of_exp_and_log(metric, shape, dtype, place):
    m = Stiefel(metric)
    x0 = m.random_point(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    at = charted(m, x0)
    scale = {"apart": 0.8, "coincident": 0.0}[place]
    h = [(scale * t).requires_grad_() for s in (1, 2) for t in m.pull(x0, seeded(shape, s, dtype))]

    def log(a, z, b, w):
        return m.log(at(a, z), at(b, w))

    def exp(a, z, b, w):
        return m.exp(at(a, z), m.push(at(a, z), (b, w)))

    def dist(a, z, b, w):
        return m.dist(at(a, z), at(b, w))

    for function in (log, exp, dist) if place == "apart" else (log, exp):
        assert gradcheck(function, h, fast_mode=True)
        assert gradgradcheck(function, h, fast_mode=True)


@pytest.mark.parametrize("metric", ALPHAS)
def test_gradient_of_the_distance_points_away(metric):
    """Minus the unit tangent vector towards y: the first variation, in any metric."""
    m = Stiefel(metric)
    x = m.random_point((40, 6), dtype=torch.float64).requires_grad_()
    y = m.exp(x.detach(), tangent(m, x.detach(), torch.tensor(2.0)))
    (g,) = torch.autograd.grad(m.dist(x, y), x)
    v = m.log(x.detach(), y)
    torch.testing.assert_close(m.grad(x.detach(), g), -v / m.norm(x.detach(), v), **CLOSE)


def test_transforms_through_exp_and_the_retractions():
    for retraction in RETRACTIONS:
        m = Stiefel(0.4, retraction)
        x = m.random_point((3, 5, 2), dtype=torch.float64)
        v = m.random_tangent(x)
        for call in (m.exp, m.retract):
            torch.testing.assert_close(torch.func.vmap(call)(x, v), call(x, v), **CLOSE)
            zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
            _, moved = torch.func.jvp(lambda t, call=call, x=x, v=v: call(x, t * v), (zero,), (one,))
            torch.testing.assert_close(moved, v, **CLOSE)


# Arguments. -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["eucl", -1, -1.5, math.nan, math.inf, True])
def test_metrics_that_are_none(metric):
    with pytest.raises(ValueError, match=r"^metric: "):
        Stiefel(metric)


def test_names_are_members_of_the_family():
    x = Stiefel().random_point((5, 3))
    g = torch.randn(5, 3)
    for name, alpha in METRICS.items():
        torch.testing.assert_close(Stiefel(name).pull(x, g), Stiefel(alpha).pull(x, g), rtol=0, atol=0)
        torch.testing.assert_close(Stiefel(name).exp(x, 0 * g), Stiefel(alpha).exp(x, 0 * g))


# In another scalar product. -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_generalized_is_stiefel_for_the_identity(dtype):
    m, s = GeneralizedStiefel(torch.eye(5, dtype=torch.float64), 0.2), Stiefel(0.2)
    x = s.random_point((5, 2), dtype=dtype)
    v = s.random_tangent(x)
    g = torch.randn(5, 2, dtype=dtype)
    y = s.exp(x, v)
    for ours, theirs in [
        (m.exp(x, v), y),
        (m.log(x, y), s.log(x, y)),
        (m.grad(x, g), s.grad(x, g)),
        (m.retract(x, v), s.retract(x, v)),
        (m.hessian(x, g, g, v), s.hessian(x, g, g, v)),
    ]:
        torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("dtype", DTYPES)
def test_generalized_metric_and_constraint(dtype):
    m, b = GeneralizedStiefel(B), B.to(dtype)
    x = m.random_point((3, 4, 2), dtype=dtype)
    u, v = m.random_tangent(x), m.random_tangent(x)
    torch.testing.assert_close(x.mH @ b @ x, torch.eye(2, dtype=dtype).expand(3, 2, 2), **CLOSE)
    torch.testing.assert_close(m.inner(x, u, v), (u.conj() * (b @ v)).sum((-2, -1)).real, **CLOSE)


def test_top_generalized_eigenvectors_maximise_the_trace():
    """Steepest ascent of tr X^T A X where X^T B X = I, against scipy."""
    m = GeneralizedStiefel(B)
    a = torch.diag(torch.tensor([4.0, 3.0, -1.0, 0.5], dtype=torch.float64))
    w, v = scipy.linalg.eigh(a.numpy(), B.numpy())
    x = m.random_point((4, 2), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for _ in range(300):
        x = m.retract(x, 0.05 * m.grad(x, 2 * a @ x))
    torch.testing.assert_close(torch.trace(x.T @ a @ x).item(), float(w[-2:].sum()), rtol=1e-8, atol=0)
    top = torch.from_numpy(v[:, -2:].copy())
    torch.testing.assert_close(x @ x.T, top @ top.T, rtol=0, atol=1e-4)


def test_canonical_correlations():
    """max tr X^T Sxy Y over X^T Sxx X = Y^T Syy Y = I: the singular values of the whitened cross-covariance."""
    data = seeded((200, 5), 0)
    x_data = data @ seeded((5, 4), 1) + 0.5 * seeded((200, 4), 2)
    y_data = data @ seeded((5, 3), 3) + 0.5 * seeded((200, 3), 4)
    sxx, syy, sxy = x_data.T @ x_data / 200, y_data.T @ y_data / 200, x_data.T @ y_data / 200
    mx, my = GeneralizedStiefel(sxx, retraction="polar"), GeneralizedStiefel(syy, retraction="polar")
    x, y = mx.random_point((4, 2), dtype=torch.float64), my.random_point((3, 2), dtype=torch.float64)
    for _ in range(500):
        x, y = mx.retract(x, mx.grad(x, sxy @ y)), my.retract(y, my.grad(y, sxy.T @ x))
    cx, cy = torch.linalg.cholesky(sxx), torch.linalg.cholesky(syy)
    white = torch.linalg.inv(cx) @ sxy @ torch.linalg.inv(cy).T
    oracle = torch.linalg.svdvals(white)[:2].sum()
    torch.testing.assert_close(torch.trace(x.T @ sxy @ y), oracle, rtol=1e-8, atol=0)


def test_one_b_for_each_point():
    b = torch.stack([B, 2 * B, B @ B])
    many = GeneralizedStiefel(b)
    x = many.random_point((3, 4, 2), dtype=torch.float64)
    many.check_point(x)
    v = many.random_tangent(x)
    for i in range(3):
        one = GeneralizedStiefel(b[i])
        torch.testing.assert_close(many.exp(x, v)[i], one.exp(x[i], v[i]), **CLOSE)
    with pytest.raises(ValueError, match=r"^x: batch dimensions"):
        many.check_point(x[:2])


def test_b_has_derivatives_and_survives_json():
    def length(b):
        m = GeneralizedStiefel((b + b.T) / 2)
        return m.norm(torch.ones(4, 1).double(), torch.ones(4, 1).double())

    assert gradcheck(length, (B.clone().requires_grad_(),))
    m = GeneralizedStiefel(B, 0.5, "cayley")
    assert Manifold.from_spec(json.loads(json.dumps(m.to_spec()))) == m


@pytest.mark.parametrize(
    "b", [torch.ones(2, 3), torch.eye(2, dtype=torch.int64), torch.tensor([[1.0, 1.0], [0.0, 1.0]]), -torch.eye(2)]
)
def test_b_that_is_no_scalar_product(b):
    with pytest.raises(ValueError, match=r"^b: expected"):
        GeneralizedStiefel(b)


def test_shapes_that_do_not_fit_b():
    for shape in [(3, 2), (4, 5), (4,)]:
        with pytest.raises(ValueError, match=r"^x: shape"):
            GeneralizedStiefel(B).check_point(torch.zeros(shape).double())
