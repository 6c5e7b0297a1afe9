"""The metrics of SPD: what is special to each; their derivatives; how they reduce to one another."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from steepest import SGD, SPD, Manifold, constrain, param_groups
from steepest.linalg import double, sym, sym_exp, sym_power
from steepest.manifolds import (
    AffineInvariant,
    AlphaProcrustes,
    BuresWasserstein,
    KernelMetric,
    LogCholesky,
    LogEuclidean,
    MeanKernel,
    PowerDeformed,
    SPDMetric,
)

M3 = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 0.7]], dtype=torch.float64)
CLOSED = {
    "affine-invariant": AffineInvariant(),
    "log-euclidean": LogEuclidean(),
    "log-cholesky": LogCholesky(),
    "bures-wasserstein": BuresWasserstein(),
    "generalised bures-wasserstein": BuresWasserstein(M3),
    "power affine-invariant": PowerDeformed("affine-invariant", 0.5),
    "alpha-procrustes": AlphaProcrustes(0.4),
    "regularised alpha-procrustes": AlphaProcrustes(-0.3, 0.2),
}
KERNELS = {"bkm": MeanKernel("logarithmic", 1.0), "harmonic": MeanKernel("harmonic", 1.5, 2.0)}
EVERY = {**CLOSED, **KERNELS}
ROUND_OFF = {"rtol": 1e-11, "atol": 1e-12}  # some hundred operations on entries of size one, condition below 100


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def point(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return SPD().random_point(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


# The metric as a value. -----------------------------------------------------------------------------------------------


def test_a_name_stands_for_a_metric():
    assert SPD() == SPD("affine-invariant") == SPD(AffineInvariant(), "exp")
    for name in ("log-euclidean", "log-cholesky", "bures-wasserstein"):
        assert SPD(name) == SPD(CLOSED[name])
        assert hash(SPD(name)) == hash(SPD(CLOSED[name]))
    assert SPD("log-euclidean") != SPD("log-cholesky")
    assert PowerDeformed("log-cholesky", 2.0) == PowerDeformed(LogCholesky(), 2.0)


@pytest.mark.parametrize("metric", EVERY.values(), ids=EVERY)
def test_metric_travels_in_json(metric: SPDMetric):
    manifold = SPD(metric)
    again = Manifold.from_spec(json.loads(json.dumps(manifold.to_spec())))
    assert again == manifold
    assert again.metric == metric
    assert Manifold.from_spec("SPD") == SPD()
    assert Manifold.from_spec({"kind": "SPD", "retraction": "second_order"}) == SPD(retraction="second_order")


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: SPD("log-euclid"), "metric: got 'log-euclid'.*log-euclidean"),
        (lambda: SPD("second_order"), r"SPD\(retraction='second_order'\)"),
        (lambda: SPD(retraction="polar"), "retraction: got 'polar', expected one of exp, second_order"),
        (lambda: SPD(MeanKernel("logarithmic", 1.0), "exp"), "retraction: got 'exp'.*no formula"),
        (lambda: SPD(AlphaProcrustes(0.5, 0.1), "exp"), "retraction: got 'exp'"),
        (lambda: MeanKernel("median", 1.0), "average: unknown 'median'"),
        (lambda: MeanKernel("logarithmic", 1.0, -1.0), "scale: expected a positive number"),
        (lambda: PowerDeformed("log-euclidean", 0.0), "power: expected a finite number other than zero"),
        (lambda: AlphaProcrustes(0.0), "alpha: expected a finite number other than zero"),
        (lambda: AlphaProcrustes(0.5, -1.0), "regularization: expected a number from zero up"),
        (lambda: BuresWasserstein(torch.ones(3)), "m: expected a positive definite matrix"),
        (lambda: SPD(BuresWasserstein(M3)).check_point(torch.eye(2)), "m of the metric is 3 x 3"),
        (lambda: SPD(BuresWasserstein(-M3)).check_point(torch.eye(3)), "not positive definite"),
        (lambda: SPD(BuresWasserstein(M3 + 0j)).check_point(torch.eye(3)), "complex"),
    ],
)
def test_errors_name_the_argument(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_closed_follows_the_metric():
    assert SPD().closed == {"exp", "log", "dist", "transport", "hessian"}
    assert SPD("log-cholesky").closed == {"exp", "log", "dist", "transport", "hessian", "mean"}
    assert SPD("bures-wasserstein").closed == {"exp", "log", "dist", "hessian"}
    assert SPD(KERNELS["bkm"]).closed == frozenset()
    assert SPD(PowerDeformed(KERNELS["bkm"], 2.0)).closed >= set()


# Retractions. ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])
@pytest.mark.parametrize("metric", EVERY.values(), ids=EVERY)
def test_steps_stay_positive_definite(metric: SPDMetric, dtype: torch.dtype):
    """However large: X + V of a step of length 10 is far from definite."""
    x, h = point(20, 3, 3, dtype=dtype), 3 * randn(20, 3, 3, seed=1, dtype=dtype)
    for name in metric.retractions:
        manifold = SPD(metric, name)
        v = manifold.push(x, h)
        assert (torch.linalg.eigvalsh(x + v)[..., 0] < 0).any()
        y = manifold.retract(x, v)
        assert (y == y.mH).all()
        # zero to rounding where a step overshoots to a singular matrix
        assert (torch.linalg.eigvalsh(y)[..., 0] > -1e-14 * torch.linalg.eigvalsh(y)[..., -1]).all()


@pytest.mark.parametrize("metric", EVERY.values(), ids=EVERY)
def test_second_order_retraction(metric: SPDMetric):
    """X + V + V X^-1 V / 2, by the inverse."""
    x = point(5, 3, 3)
    manifold = SPD(metric, "second_order")
    v = 0.3 * manifold.push(x, randn(5, 3, 3, seed=1))
    torch.testing.assert_close(manifold.retract(x, v), x + v + v @ torch.linalg.solve(x, v) / 2, **ROUND_OFF)


@pytest.mark.slow  # tests/optim/test_sensing.py has them in short
@pytest.mark.parametrize("metric", EVERY.values(), ids=EVERY)
def test_an_optimiser_finds_the_minimum(metric: SPDMetric):
    """min tr(X A) - log det X, at X = A^-1, by steepest descent: the gradient vanishes."""
    a = point(3, 3, seed=4) + 0.5 * torch.eye(3, dtype=torch.float64)
    module = torch.nn.ParameterDict({"x": torch.eye(3, dtype=torch.float64)})
    optimizer = SGD(param_groups(constrain(module, "x", SPD(metric))), lr=0.05)  # 2 / lr is twice the largest Hessian
    for _ in range(300):
        optimizer.zero_grad()
        (torch.trace(module["x"] @ a) - torch.logdet(module["x"])).backward()
        optimizer.step()
    # linear convergence, at the worst by a factor 0.97 per step under these metrics
    torch.testing.assert_close(module["x"].detach() @ a, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-4)


# Derivatives. ---------------------------------------------------------------------------------------------------------


def _raised(h: Tensor, base: Tensor) -> Tensor:
    """A positive definite matrix for any h."""
    return sym_exp(sym(h) + base)


@pytest.mark.parametrize(
    "dtype", [torch.float64, pytest.param(torch.complex128, marks=pytest.mark.slow)], ids=["real", "complex"]
)
@pytest.mark.parametrize("operation", ["exp", "log", "dist"])
@pytest.mark.parametrize("name", [n for n in CLOSED if n != "generalised bures-wasserstein"])
def test_derivatives(name: str, operation: str, dtype: torch.dtype):
    """First and second, by differences, at repeated eigenvalues: x = I; exp at v = 0, log at y = x as well."""
    manifold, base = SPD(CLOSED[name]), torch.zeros(2, 2, dtype=dtype)
    h, k = (0.3 * randn(2, 2, seed=s, dtype=dtype) for s in (1, 2))
    places = [(base, h), (h, k)] if operation == "dist" else [(base, base), (base, h)]
    for a, b in places:
        a, b = a.clone().requires_grad_(), b.clone().requires_grad_()

        def call(a: Tensor, b: Tensor) -> Tensor:
            x = _raised(a, base)
            second = sym(b) if operation == "exp" else _raised(b, base)
            return getattr(manifold, operation)(x, second)

        # along random directions where all of them would take seconds for each metric
        assert gradcheck(call, (a, b), fast_mode=dtype.is_complex)
        assert gradgradcheck(call, (a, b), fast_mode=True)


@pytest.mark.parametrize("metric", [LogEuclidean(), LogCholesky(), BuresWasserstein()], ids=str)
def test_derivative_of_the_mean(metric: SPDMetric):
    h = 0.4 * randn(3, 2, 2)
    w = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    assert gradcheck(  # along a random direction, as above
        lambda h, w: SPD(metric).mean(_raised(h, torch.zeros(2, 2, dtype=h.dtype)), w),
        (h.requires_grad_(), w.requires_grad_()),
        fast_mode=True,
    )


@pytest.mark.parametrize("operation", ["dist", "log", "exp", "push", "pull", "inner", "retract"])
def test_the_matrix_of_the_generalised_metric_can_be_learned(operation: str):
    x, y, v = point(2, 2), point(2, 2, seed=1), sym(randn(2, 2, seed=2))

    def call(h: Tensor) -> Tensor:
        manifold = SPD(BuresWasserstein(_raised(h, torch.zeros(2, 2, dtype=h.dtype))))
        second = {"dist": y, "log": y}.get(operation, 0.3 * v)
        arguments = (x, second, v) if operation == "inner" else (x, second)
        return getattr(manifold, operation)(*arguments)

    h = randn(2, 2, seed=3).requires_grad_()
    assert gradcheck(call, h)
    assert gradgradcheck(call, h, fast_mode=True)


def test_the_regularisation_can_be_learned():
    x, y = point(2, 2), point(2, 2, seed=1)
    c = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda c: SPD(AlphaProcrustes(0.3, c)).dist(x, y), c)


def test_geodesics_of_kernels_have_no_derivative():
    manifold, x = SPD(KERNELS["bkm"]), point(2, 2)
    v = (0.1 * sym(randn(2, 2))).requires_grad_()
    with pytest.raises(NotImplementedError, match="second derivatives"):
        manifold.exp(x.requires_grad_(), v).sum().backward()


@pytest.mark.parametrize("metric", CLOSED.values(), ids=CLOSED)
def test_transforms_of_torch(metric: SPDMetric):
    manifold = SPD(metric)
    x, y = point(4, 3, 3), point(4, 3, 3, seed=1)
    square = lambda x, y: manifold.dist(x, y) ** 2  # noqa: E731
    torch.testing.assert_close(torch.vmap(manifold.log)(x, y), manifold.log(x, y), **ROUND_OFF)
    slope = torch.vmap(torch.func.grad(square))(x, y)
    # the gradient of the squared distance is -2 log, in any metric
    torch.testing.assert_close(manifold.grad(x, slope), -2 * manifold.log(x, y), rtol=1e-9, atol=1e-9)


# Precision. -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in CLOSED if n != "generalised bures-wasserstein"])
def test_float32_at_condition_1e6(name: str):
    """log and dist of float32 matrices are those of the same numbers in float64, to float32's own rounding."""
    q = torch.linalg.qr(randn(5, 4, 4))[0]
    eigenvalues = torch.logspace(-3, 3, 4, dtype=torch.float64)
    x = (q * eigenvalues) @ q.mT
    x, y = sym(x).float(), sym(q.mT @ x @ q).float()
    manifold = SPD(CLOSED[name])
    wide = manifold.dist(double(x), double(y))
    torch.testing.assert_close(manifold.dist(x, y), wide.float(), rtol=1e-6, atol=0)
    log = manifold.log(double(x), double(y))
    gap = (manifold.log(x, y) - log).abs().amax((-2, -1)) / log.abs().amax((-2, -1))
    assert gap.max() < 1e-6


@pytest.mark.parametrize("metric", CLOSED.values(), ids=CLOSED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=["real", "complex"])
def test_dtypes_stay(metric: SPDMetric, dtype: torch.dtype):
    manifold, x, y = SPD(metric), point(2, 3, 3, dtype=dtype), point(2, 3, 3, seed=1, dtype=dtype)
    v = 0.1 * sym(randn(2, 3, 3, dtype=dtype))
    for name, second in {"exp": v, "log": y, "push": v, "pull": v, "coords": v, "conform": v, "retract": v}.items():
        assert getattr(manifold, name)(x, second).dtype == dtype, name
    assert manifold.transport(x, y, v).dtype == manifold.mean(x).dtype == dtype
    assert manifold.decay(x, v, 0.1).dtype == manifold.hessian(x, v, v, v).dtype == dtype
    for number in (manifold.dist(x, y), manifold.norm(x, v), manifold.inner(x, v, v), manifold.residual(x)):
        assert number.dtype == torch.float32
        assert number.shape == (2,)


# Single metrics. ------------------------------------------------------------------------------------------------------


def test_curvature_of_the_affine_invariant_metric():
    """-1/2 in the plane of two by two matrices of determinant one, a hyperbolic plane; never positive; 0 with I."""
    metric = AffineInvariant()
    u = torch.tensor([[1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    v = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    assert metric.sectional_curvature(eye, u, v).item() == pytest.approx(-0.5)
    for dtype in (torch.float64, torch.complex128):
        x = point(50, 4, 4, dtype=dtype)
        a, b = (sym(randn(50, 4, 4, seed=s, dtype=dtype)) for s in (1, 2))
        k = metric.sectional_curvature(x, a, b)
        assert ((k <= 0) & (k >= -0.5)).all()
        # of the plane alone, and invariant
        torch.testing.assert_close(metric.sectional_curvature(x, a + 2 * b, 3 * b - a), k, rtol=1e-9, atol=1e-12)
        g = randn(4, 4, seed=2, dtype=dtype)
        moved = [g @ m @ g.mH for m in (x, a, b)]
        torch.testing.assert_close(metric.sectional_curvature(*moved), k, rtol=1e-8, atol=1e-10)
        assert metric.sectional_curvature(x, a, 2 * a).abs().max() == 0
    assert metric.sectional_curvature(eye, u, eye).item() == 0


def test_curvature_from_a_geodesic_triangle():
    """The ends of two geodesics of length t at a right angle are sqrt(2 t^2 - K t^4 / 3 + O(t^6)) apart."""
    manifold, x = SPD(), point(3, 3)
    h = torch.linalg.qr(torch.stack([sym(randn(3, 3, seed=s)).flatten() for s in (1, 2)], -1))[0]
    u, v = (manifold.push(x, c.reshape(3, 3)) for c in h.mT)
    t = 2e-2
    gap = manifold.dist(manifold.exp(x, t * u), manifold.exp(x, t * v)) ** 2
    k = 3 * (2 * t**2 - gap) / t**4
    # an error of order t^2 from the next term, and of 1e-16 / t^4 = 1e-9 from rounding
    assert k.item() == pytest.approx(manifold.metric.sectional_curvature(x, u, v).item(), abs=1e-3)


def test_log_cholesky_does_not_swell():
    """The determinant of a mean is the geometric mean of the determinants."""
    x = point(5, 3, 3)
    mean = SPD("log-cholesky").mean(x)
    torch.testing.assert_close(torch.logdet(mean), torch.logdet(x).mean(), **ROUND_OFF)


def test_log_cholesky_inner_product_of_factors():
    """sum of dL_ij^2 below the diagonal and (dL_ii / L_ii)^2 on it, with dL by differentiating the Cholesky factor."""
    for dtype in (torch.float64, torch.complex128):
        x, v = point(3, 3, dtype=dtype), sym(randn(3, 3, seed=1, dtype=dtype))
        L, dL = torch.func.jvp(torch.linalg.cholesky, (x,), (v,))
        relative = torch.tril(dL, -1) + torch.diag_embed(dL.diagonal() / L.diagonal())
        torch.testing.assert_close(SPD("log-cholesky").norm(x, v), torch.linalg.matrix_norm(relative), **ROUND_OFF)


def test_bures_wasserstein_near_points_keep_their_digits():
    """The distance of points 1e-9 apart is the length of their difference; by the traces it would be noise."""
    x, v = point(3, 3), sym(randn(3, 3, seed=1))
    manifold = SPD("bures-wasserstein")
    ratio = manifold.dist(x, x + 1e-9 * v) / (1e-9 * manifold.norm(x, v))
    assert ratio.item() == pytest.approx(1, abs=1e-6)  # eps / 1e-9, and 1e-9 from the curvature


def test_bures_wasserstein_geodesic_ends():
    """exp is the shortest geodesic while I + S is positive definite, and a longer way beyond."""
    x = point(3, 3)
    manifold = SPD("bures-wasserstein")
    s = -torch.eye(3, dtype=torch.float64)  # I + t S vanishes at t = 1
    v = s @ x + x @ s
    for t in (0.5, 0.99):
        y = manifold.exp(x, t * v)
        torch.testing.assert_close(manifold.dist(x, y), t * manifold.norm(x, v), **ROUND_OFF)
    beyond = manifold.exp(x, 1.5 * v)
    torch.testing.assert_close(manifold.dist(x, beyond), 0.5 * manifold.norm(x, v), **ROUND_OFF)


def test_generalised_bures_wasserstein():
    """M = X: a quarter of the affine-invariant metric at X. M = I: none. Any M: a congruence, which is an isometry."""
    for dtype in (torch.float64, torch.complex128):
        x, y, m = (point(3, 3, seed=s, dtype=dtype) for s in range(3))
        u, v = (sym(randn(3, 3, seed=s, dtype=dtype)) for s in (3, 4))
        local = SPD(BuresWasserstein(x)).inner(x, u, v)
        torch.testing.assert_close(local, SPD().inner(x, u, v) / 4, **ROUND_OFF)
        plain = SPD("bures-wasserstein")
        identity = SPD(BuresWasserstein(torch.eye(3, dtype=dtype)))
        torch.testing.assert_close(identity.dist(x, y), plain.dist(x, y), **ROUND_OFF)
        w = torch.linalg.inv(torch.linalg.cholesky(m))
        there = lambda a, w=w: w @ a @ w.mH  # noqa: E731
        general = SPD(BuresWasserstein(m))
        torch.testing.assert_close(general.dist(x, y), plain.dist(there(x), there(y)), **ROUND_OFF)
        torch.testing.assert_close(there(general.log(x, y)), plain.log(there(x), there(y)), **ROUND_OFF)
        torch.testing.assert_close(general.inner(x, u, v), plain.inner(there(x), there(u), there(v)), **ROUND_OFF)


def test_one_matrix_for_each_element_of_a_batch():
    x, y, m = (point(4, 3, 3, seed=s) for s in range(3))
    many = SPD(BuresWasserstein(m)).dist(x, y)
    for i in range(4):
        torch.testing.assert_close(many[i], SPD(BuresWasserstein(m[i])).dist(x[i], y[i]), **ROUND_OFF)


# How they reduce to one another. --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "metric"),
    [
        (MeanKernel("geometric", 2.0), AffineInvariant()),
        (MeanKernel(0.0, 2.0), AffineInvariant()),
        (MeanKernel("logarithmic", 2.0), LogEuclidean()),
        (MeanKernel("arithmetic", 1.0, 4.0), BuresWasserstein()),
        (MeanKernel(1.0, 1.0, 4.0), BuresWasserstein()),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])
def test_named_kernels(kernel: KernelMetric, metric: SPDMetric, dtype: torch.dtype):
    """The inner product, the gradient and the Hessian, also at repeated and at nearly repeated eigenvalues."""
    eye = torch.eye(3, dtype=dtype)
    near = eye + 1e-7 * sym(randn(3, 3, seed=5, dtype=dtype))
    x = torch.stack([point(3, 3, dtype=dtype), eye, near])
    u, v, g = (sym(randn(3, 3, 3, seed=s, dtype=dtype)) for s in (1, 2, 3))
    ours, named = SPD(kernel), SPD(metric)
    torch.testing.assert_close(ours.inner(x, u, v), named.inner(x, u, v), **ROUND_OFF)
    torch.testing.assert_close(ours.grad(x, g), named.grad(x, g), **ROUND_OFF)
    # the slopes of a kernel are right to 4e-11 between near eigenvalues
    torch.testing.assert_close(ours.hessian(x, g, u, v), named.hessian(x, g, u, v), rtol=1e-9, atol=1e-9)


def test_other_kernels():
    x, u, v = point(3, 3), sym(randn(3, 3, seed=1)), sym(randn(3, 3, seed=2))
    euclidean = (u * v).sum()
    torch.testing.assert_close(SPD(MeanKernel("harmonic", 0.0)).inner(x, u, v), euclidean, **ROUND_OFF)
    # Bogoliubov-Kubo-Mori: tr(U D log(X)[V])
    slope = torch.func.jvp(
        lambda x: torch.linalg.eigh(x)[1] @ torch.diag(torch.linalg.eigvalsh(x).log()) @ torch.linalg.eigh(x)[1].mT,
        (x,),
        (v,),
    )[1]
    torch.testing.assert_close(SPD(MeanKernel("logarithmic", 1.0)).inner(x, u, v), (u * slope).sum(), **ROUND_OFF)
    harmonic, power = SPD(MeanKernel("harmonic", 1.3)), SPD(MeanKernel(-1.0, 1.3))
    torch.testing.assert_close(harmonic.inner(x, u, v), power.inner(x, u, v), **ROUND_OFF)


def test_a_kernel_of_ones_own():
    known = dict(SPDMetric.known)

    @dataclasses.dataclass(frozen=True)
    class Sum(KernelMetric):
        def phi(self, x: Tensor, y: Tensor) -> Tensor:
            return 2 * (x + y)

    SPDMetric.known.clear()
    SPDMetric.known.update(known)
    x, v = point(2, 2), 0.1 * sym(randn(2, 2, seed=1))
    # integrated to 1000 eps
    torch.testing.assert_close(SPD(Sum()).exp(x, v), SPD("bures-wasserstein").exp(x, v), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("power", [-2.0, -0.5, 0.3, 3.0])
def test_powers(power: float):
    """The log-Euclidean metric stays; the affine-invariant one stays under inversion; Bures-Wasserstein of squares is
    the Euclidean metric on diagonal matrices."""
    x, y, v = point(3, 3), point(3, 3, seed=1), sym(randn(3, 3, seed=2))
    flat, deformed = SPD("log-euclidean"), SPD(PowerDeformed("log-euclidean", power))
    for operation, arguments in {"dist": (x, y), "log": (x, y), "exp": (x, 0.3 * v), "transport": (x, y, v)}.items():
        ours, theirs = getattr(deformed, operation)(*arguments), getattr(flat, operation)(*arguments)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)  # a power 3 has the condition cubed
    inverse = SPD(PowerDeformed("affine-invariant", -1.0))
    torch.testing.assert_close(inverse.dist(x, y), SPD().dist(x, y), **ROUND_OFF)
    a, b = (torch.diag(torch.tensor(d, dtype=torch.float64)) for d in ((1.0, 2.0), (3.0, 0.5)))
    root = SPD(PowerDeformed("bures-wasserstein", 2.0))
    assert root.dist(a, b).item() == pytest.approx(torch.linalg.matrix_norm(a - b).item() / 2)


def test_deformed_kernel_falls_back_to_integration():
    """The power-Euclidean metric, 1/p^2 |X^p - Y^p|^2, by way of the kernel of exponent zero."""
    x, v = point(2, 2) + torch.eye(2, dtype=torch.float64), 0.1 * sym(randn(2, 2, seed=1))
    manifold = SPD(PowerDeformed(MeanKernel("arithmetic", 0.0), 2.0))
    straight = sym_power(x @ x + x @ v + v @ x, 0.5)
    torch.testing.assert_close(manifold.exp(x, v), straight, rtol=1e-11, atol=1e-12)


def test_alpha_procrustes_limits():
    x, y = point(3, 3), point(3, 3, seed=1)
    half = SPD(AlphaProcrustes(0.5)).dist(x, y)
    torch.testing.assert_close(half, 2 * SPD("bures-wasserstein").dist(x, y), **ROUND_OFF)
    log = SPD("log-euclidean").dist(x, y)
    for sign in (1, -1):
        gaps = [abs(SPD(AlphaProcrustes(sign * a)).dist(x, y) - log).item() for a in (1e-2, 1e-3)]
        assert gaps[1] < 0.2 * gaps[0] < 0.2 * 0.1 * log  # at least linear in alpha
    singular = torch.diag(torch.tensor([1.0, 1e-300], dtype=torch.float64))
    bounded = SPD(AlphaProcrustes(-0.5, 0.1)).dist(singular, torch.eye(2, dtype=torch.float64))
    # 2 |1 / sqrt(0.1) - 1 / sqrt(1.1)|
    assert bounded.item() == pytest.approx(2 * (0.1**-0.5 - 1.1**-0.5))


def test_scale_of_distances_along_rays():
    """dist(X, a X)."""
    x, a = point(3, 3), 7.0
    assert SPD().dist(x, a * x).item() == pytest.approx(math.sqrt(3) * math.log(a))
    assert SPD("log-euclidean").dist(x, a * x).item() == pytest.approx(math.sqrt(3) * math.log(a))
    wasserstein = SPD("bures-wasserstein").dist(x, a * x).item()
    assert wasserstein == pytest.approx((math.sqrt(a) - 1) * math.sqrt(torch.trace(x).item()))
