"""Two levels: hypergradients against closed forms of the lower minimum, and their errors against the theory's."""

import importlib
import json
import math
import pathlib
import sys
from itertools import pairwise

import pytest
import torch

from steepest import SPD, Euclidean, Grassmann, Sphere, Stiefel, bilevel, minimize
from steepest.solvers import (
    BOREP,
    CG,
    RHGD,
    FixedStep,
    Inverse,
    Levels,
    Neumann,
    Problem,
    SteepestDescent,
    Unrolled,
)
from steepest.solvers.bilevel import BilevelMethod, Hypergradient

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def sym(a):
    return (a + a.mT) / 2


# Problems with a closed form of y(x). ---------------------------------------------------------------------------------


class Quadratic:
    """g = y B y / 2 - y (C x + d), f = |y - t|^2 / 2 + |x|^2 / 20, in flat space."""

    mx, my = Euclidean(1), Euclidean(1)
    b = torch.diag(torch.linspace(0.5, 2.0, 5, dtype=F64))
    c, d, t = randn(5, 3), randn(5, seed=1), randn(5, seed=2)
    x, y0 = randn(3, seed=3), torch.zeros(5, dtype=F64)

    def lower(self, x, y):
        return y @ self.b.to(y) @ y / 2 - y @ (self.c.to(y) @ x + self.d.to(y))

    def upper(self, x, y):
        return (y - self.t.to(y)).square().sum() / 2 + x @ x / 20

    def solve(self, x):
        return torch.linalg.solve(self.b, self.c @ x + self.d)


class MetricLearning:
    """The synthetic problem of Han et al. 2024, section 4.1: W on Stiefel above, M on SPD below, at the geometric mean
    of two matrices."""

    mx, my = Stiefel(), SPD()
    a, y = randn(30, 4), randn(30, 2, seed=1)
    a, y = a / a.norm(), y / y.norm()
    x = Stiefel().project(randn(4, 2, seed=2))
    y0 = torch.eye(4, dtype=F64)

    def _matrices(self, w):
        eye = torch.eye(4, dtype=w.dtype)
        a, y = self.a.to(w), self.y.to(w)
        return a.mT @ a, w @ (y.mT @ y) @ w.mT + 0.1 * eye

    def lower(self, w, m):
        a, b = self._matrices(w)
        return (m * a).sum() + (torch.linalg.inv(m) * b).sum()

    def upper(self, w, m):
        return -(m @ self.a.to(w).mT @ self.y.to(w) @ w.mT).trace()

    def solve(self, w):
        a, b = self._matrices(w)
        d, q = torch.linalg.eigh(a)
        root, inverse = q @ torch.diag(d.sqrt()) @ q.mT, q @ torch.diag(d.rsqrt()) @ q.mT
        d, q = torch.linalg.eigh(sym(root @ b @ root))
        return inverse @ q @ torch.diag(d.sqrt()) @ q.mT @ inverse


class Eigenvectors:
    """x turns a symmetric matrix whose leading eigenvectors are y(x): a quotient (the span of two), or a frame with a
    kernel (two in order, by Brockett's weights)."""

    a, b = (torch.stack([sym(randn(5, 5, seed=3 * k + i)) for i in range(3)]) for k in (1, 2))
    a = a / 8 + torch.diag(torch.linspace(0, 1, 5, dtype=F64))
    mx, x = Sphere(), Sphere().project(torch.ones(3, dtype=F64))

    def __init__(self, my, weights):
        self.my, self.weights = my, torch.tensor(weights, dtype=F64)
        self.y0 = self.solve(Sphere().project(torch.tensor([1.0, 1.2, 0.9], dtype=F64)))

    def lower(self, x, y):
        return -(self.weights * (y * (torch.einsum("k,kij->ij", x, self.a) @ y)).sum(0)).sum()

    def upper(self, x, y):
        return (self.weights * (y * (torch.einsum("k,kij->ij", x**2, self.b) @ y)).sum(0)).sum()

    def solve(self, x):
        return torch.linalg.eigh(torch.einsum("k,kij->ij", x, self.a))[1][:, [-1, -2]]


PROBLEMS = [Quadratic(), MetricLearning(), Eigenvectors(Grassmann(), [1.0, 1.0]), Eigenvectors(Stiefel(), [2.0, 1.0])]
IDS = ["quadratic", "metric", "grassmann", "stiefel"]


def truth(p):
    """F in closed form, at x."""
    return Problem(lambda x: p.upper(x, p.solve(x)), p.mx).at(p.x)


def gap(p, estimate, at):
    found = at.ravel(p.mx._pull(at.frame, estimate.covector))
    return float((found - at.gradient).norm())


# Hypergradients. ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", PROBLEMS, ids=IDS)
@pytest.mark.parametrize("rule", [Inverse(), CG(), Neumann(400), Unrolled(150, 0.15)], ids=lambda r: type(r).__name__)
def test_hypergradient(rule, problem):
    """That of the closed form, by autograd through it, to where series and steps have converged."""
    levels, at = Levels(problem.upper, problem.lower, problem.mx, problem.my), truth(problem)
    pair = levels.at(problem.x, problem.solve(problem.x))
    assert pair.below.norm < 1e-12  # the closed form is the minimum
    estimate = rule.estimate(pair)
    tolerance = 1e-5 if isinstance(rule, Unrolled) else 1e-9  # (1 - t mu)^150; the tolerance of CG
    assert gap(problem, estimate, at) < tolerance * (1 + at.norm)


@pytest.mark.parametrize("problem", PROBLEMS[1:3], ids=IDS[1:3])
def test_finite_differences(problem):
    """The lower level is solved by `minimize` to 1e-11 at both ends of a short curve: nothing is in common with the
    estimate but the two functions."""
    levels = Levels(problem.upper, problem.lower, problem.mx, problem.my)

    def reduced(x):
        y = minimize(lambda y: problem.lower(x, y), problem.y0, problem.my, "LBFGS", tolerance=1e-11).x
        return levels.value(x, y), y

    at = truth(problem)
    z = at.random(torch.Generator().manual_seed(5))
    t = 1e-4
    slope = (reduced(at.move(t * z).x)[0] - reduced(at.move(-t * z).x)[0]) / (2 * t)
    estimate = CG().estimate(levels.at(problem.x, reduced(problem.x)[1]))
    found = float(at.ravel(problem.mx._pull(at.frame, estimate.covector)) @ z)
    assert math.isclose(slope, found, rel_tol=1e-5, abs_tol=1e-7)  # t^2 F'''


def test_inverse_sees_the_curvature():
    """Smallest eigenvalue of the lower Hessian: of the matrix in flat space, and without the kernel of a frame."""
    p = Quadratic()
    estimate = Inverse().estimate(Levels(p.upper, p.lower, p.mx, p.my).at(p.x, p.solve(p.x)))
    assert math.isclose(estimate.curvature, 0.5, rel_tol=1e-12)
    q = Eigenvectors(Grassmann(), [1.0, 1.0])
    values = torch.linalg.eigvalsh(torch.einsum("k,kij->ij", q.x, q.a))
    pair = Levels(q.upper, q.lower, q.mx, q.my).at(q.x, q.solve(q.x))
    expected = 2 * float(values[-2] - values[-3])  # of -tr(Y^T A Y) on the Grassmann manifold
    assert math.isclose(Inverse().estimate(pair).curvature, expected, rel_tol=1e-9)
    assert math.isclose(CG().estimate(pair).curvature, expected, rel_tol=1e-6)


def test_series_and_steps_have_the_errors_of_the_theory():
    """In flat space: exactly C B^-1 (I - t B)^k (y - t), for k terms and for k steps from the minimum alike."""
    p = Quadratic()
    pair, at = Levels(p.upper, p.lower, p.mx, p.my).at(p.x, p.solve(p.x)), truth(p)
    for k in (1, 4, 9):
        left = torch.linalg.matrix_power(torch.eye(5, dtype=F64) - 0.3 * p.b, k) @ (pair.y - p.t)
        expected = at.gradient - p.c.mT @ torch.linalg.solve(p.b, left)
        for rule in (Neumann(k, 0.3), Unrolled(k, 0.3)):
            estimate = rule.estimate(pair)
            assert torch.allclose(estimate.covector, expected, rtol=1e-12, atol=1e-13)
            assert math.isclose(estimate.residual, float(left.norm()), rel_tol=1e-12)


def test_conjugate_gradients_have_the_error_of_the_theory():
    """The adjoint's, in the norm of the Hessian: 2 ((sqrt k - 1) / (sqrt k + 1))^i, and none after as many steps as
    there are eigenvalues."""
    p = Quadratic()
    pair = Levels(p.upper, p.lower, p.mx, p.my).at(p.x, p.solve(p.x))
    exact = torch.linalg.solve(p.b, pair.y - p.t)
    rate = (math.sqrt(4.0) - 1) / (math.sqrt(4.0) + 1)
    energies = []
    for i in range(1, 6):
        error = CG(i, 0.0).estimate(pair).adjoint - exact
        energies.append(float((error @ p.b @ error).sqrt() / (exact @ p.b @ exact).sqrt()))
        assert energies[-1] <= 2 * rate**i
    assert energies[-1] < 1e-12
    assert energies == sorted(energies, reverse=True)


@pytest.mark.parametrize("problem", PROBLEMS, ids=IDS)
@pytest.mark.parametrize("off", [0.0, 1e-3])
def test_error_estimate(problem, off):
    """It is of the order of the true error, wherever that comes from: seldom below, and not far above."""
    levels, at = Levels(problem.upper, problem.lower, problem.mx, problem.my), truth(problem)
    y = problem.solve(problem.x)
    y = problem.my.retract(y, off * problem.my.random_tangent(y, generator=torch.Generator().manual_seed(0)))
    pair = levels.at(problem.x, y)
    for rule in (Inverse(), CG(2), CG(), Neumann(5, 0.1), Neumann(30), Unrolled(5, 0.1), Unrolled(30, 0.1)):
        estimate = rule.estimate(pair)
        true, said = gap(problem, estimate, at), rule.error(pair, estimate)
        assert true <= 2 * said + 1e-11, rule  # mu is seen from above
        assert said <= 100 * true + 1e-8, rule  # the bound has |C| / mu for what acts on one vector


def test_no_dependence():
    """f without y has its own gradient; g without x has no derivative across."""
    x, y = randn(2), randn(3, seed=1)
    levels = Levels(lambda x, y: x @ x, lambda x, y: (y - 1).square().sum(), Euclidean(1), Euclidean(1))
    other = Levels(lambda x, y: x @ x + y.sum(), lambda x, y: (y - 1).square().sum(), Euclidean(1), Euclidean(1))
    for rule in (Inverse(), CG(), Neumann(3), Unrolled(3)):
        for case in (levels, other):
            estimate = rule.estimate(case.at(x, y))
            assert torch.allclose(estimate.covector, 2 * x, rtol=1e-12)
            assert rule.error(case.at(x, y), estimate) < 1e-9


# The driver. ----------------------------------------------------------------------------------------------------------

METHODS = [m for _, family in sorted(BilevelMethod.known.items()) for m in family.examples()]
DESCENTS = [m for m in METHODS if isinstance(m, RHGD)]


@pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=[pytest.mark.slow] if isinstance(m.hypergradient, Unrolled) else []) for m in DESCENTS],
    ids=str,
)
def test_minimum(method):
    """What direct minimisation of the closed form finds."""
    p = MetricLearning()
    random = torch.get_rng_state()
    result = bilevel(p.upper, p.lower, p.x, p.y0, p.mx, p.my, method, tolerance=1e-4)
    best = minimize(lambda w: p.upper(w, p.solve(w)), p.x, p.mx)
    assert result.success, str(result)
    assert abs(result.value - best.value) < 1e-5  # of second order in the tolerance, over the smallest curvature
    assert result.gradient_norm <= 1e-4
    assert result.gradient_error < (1e-3 if isinstance(method.hypergradient, Unrolled) else 1e-6)  # (1 - t mu)^60
    assert (result.y - p.solve(result.x)).norm() < 1e-3
    assert [r.iteration for r in result.history] == list(range(result.iterations + 1))
    assert torch.equal(random, torch.get_rng_state())


def test_normalised_momentum():
    """BO-REP with steps that shrink gets there too, and the lower level moves every `period` iterations only."""
    p = Quadratic()
    method = BOREP(0.3, 0.1, 0.8, lower_step=0.5, adjoint_step=0.5, lower_steps=10, period=3)
    seen = []
    options = {"max_iterations": 300, "callback": lambda record, x, y: seen.append((x, y))}
    result = bilevel(p.upper, p.lower, p.x, p.y0, method=method, **options)
    best = minimize(lambda x: p.upper(x, p.solve(x)), p.x)
    assert result.value - best.value < 1e-3 * (truth(p).value - best.value)
    assert result.gradient_error > 0
    moved = [not torch.equal(a[1], b[1]) for a, b in pairwise(seen)]
    assert moved[:6] == [False, False, True, False, False, True]
    lengths = [float((a[0] - b[0]).norm()) for a, b in pairwise(seen)]
    assert all(math.isclose(s, 0.3 / (1 + 0.1 * k), rel_tol=1e-9) for k, s in enumerate(lengths))


def test_first_steps_of_normalised_momentum():
    """Written out in flat space."""
    p = Quadratic()
    method = BOREP(0.2, 0.0, 0.7, 4, 2, 3, 0.4, 0.3)
    seen = []
    options = {"max_iterations": 5, "callback": lambda record, x, y: seen.append((x, y))}
    bilevel(p.upper, p.lower, p.x, p.y0, method=method, **options)
    x, y, z, m = p.x, p.y0, torch.zeros(5, dtype=F64), 0.0
    for _ in range(4):
        y = y - 0.4 * (p.b @ y - p.c @ x - p.d)
    for k, found in enumerate(seen):
        if k and k % 2 == 0:
            for _ in range(3):
                y = y - 0.4 * (p.b @ y - p.c @ x - p.d)
        assert torch.allclose(found[0], x, rtol=1e-12)
        assert torch.allclose(found[1], y, rtol=1e-12)
        z = z - 0.3 * (p.b @ z - (y - p.t))
        m = 0.7 * m + 0.3 * (x / 10 + p.c.mT @ z)
        x = x - 0.2 * m / m.norm()


def test_fixed_steps():
    """Algorithm 1 of Han et al.: with the lower level solved, gradient descent on the closed form."""
    p = Quadratic()
    method = RHGD(Inverse(), SteepestDescent(FixedStep(0.1), barzilai_borwein=False), lower_tolerance=1e-12)
    result = bilevel(p.upper, p.lower, p.x, p.y0, method=method, max_iterations=4, tolerance=0)
    x = p.x
    for r in result.history:
        at = Problem(lambda x: p.upper(x, p.solve(x)), p.mx).at(x)
        assert math.isclose(r.gradient_norm, at.norm, rel_tol=1e-9)
        x = x - 0.1 * at.gradient


def test_single_precision():
    p = MetricLearning()
    method = RHGD(lower_tolerance=1e-4)
    result = bilevel(p.upper, p.lower, p.x.float(), p.y0.float(), p.mx, p.my, method, tolerance=1e-3)
    assert result.success
    assert result.x.dtype == result.y.dtype == torch.float32


def test_batches():
    """Two problems side by side are one on the product."""
    p = Quadratic()

    def both(function):
        return lambda x, y: sum(function(x[i], y[i]) for i in range(2))

    x = torch.stack([p.x, -p.x])
    result = bilevel(both(p.upper), both(p.lower), x, randn(2, 5), Euclidean(1), Euclidean(1), tolerance=1e-6)
    best = minimize(lambda x: p.upper(x, p.solve(x)), p.x)
    assert result.success
    assert torch.allclose(result.x, best.x.expand(2, 3), atol=1e-5)


def test_lower_level_that_ends():
    """Where a trial step leaves the set on which g is defined, it counts as too high."""

    def lower(x, y):
        return (y - x).square().sum() - x.log().sum() * 0

    one = torch.full((1,), 0.2, dtype=F64)
    result = bilevel(lambda x, y: (y + 1).square().sum() * 50 + 1 / x.sum(), lower, one, one, method="RHGD")
    assert result.x > 0
    assert math.isfinite(result.value)


@pytest.mark.parametrize(
    "value", [m for _, f in sorted(Hypergradient.known.items()) for m in f.examples()] + METHODS, ids=str
)
def test_spec(value):
    family = Hypergradient if isinstance(value, Hypergradient) else BilevelMethod
    assert family.from_spec(json.loads(json.dumps(value.to_spec()))) == value


def test_faults():
    p = Quadratic()
    x, y = p.x, p.y0
    with pytest.raises(TypeError, match="lower: got"):
        bilevel(p.upper, lambda x, y: y, x, y)
    with pytest.raises(TypeError, match="upper: got"):
        bilevel(lambda x, y: y, p.lower, x, y)
    with pytest.raises(ValueError, match="lower: its value at x0, y0 is inf"):
        bilevel(p.upper, lambda x, y: y.sum() * torch.nan, x, y)
    with pytest.raises(ValueError, match="upper: its value at x0, y0 is inf"):
        bilevel(lambda x, y: y.sum() + torch.inf, p.lower, x, y)
    with pytest.raises(ValueError, match=r"hypergradient's norm is (nan|inf).*inverted"):
        bilevel(p.upper, lambda x, y: 0 * (x.sum() * y.sum()), x, y, method=RHGD(Inverse()))
    with pytest.raises(ValueError, match="y0 is not a point of Sphere"):
        bilevel(p.upper, p.lower, x, y, None, Sphere())
    with pytest.raises(ValueError, match="method: unknown 'AID'"):
        bilevel(p.upper, p.lower, x, y, method="AID")
    with pytest.raises(TypeError, match="method: got CG"):
        bilevel(p.upper, p.lower, x, y, method=CG())
    with pytest.raises(ValueError, match="outer: TrustRegion is of order 2"):
        RHGD(outer="TrustRegion")
    with pytest.raises(ValueError, match="beta"):
        BOREP(beta=1.0)
    with pytest.raises(ValueError, match="terms"):
        Neumann(0)
    with pytest.raises(ValueError, match="max_iterations"):
        bilevel(p.upper, p.lower, x, y, max_iterations=-1)


# The example. ---------------------------------------------------------------------------------------------------------


def test_hyper_representation(monkeypatch):
    """Two levels find what minimisation with the closed form of the head does, and the representation generalises."""
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parents[2] / "examples")
    monkeypatch.delitem(sys.modules, "hyper_representation", raising=False)
    example = importlib.import_module("hyper_representation")
    problem = example.data(count=30, n=5)
    w0 = Stiefel().project(randn(5, 2, seed=1))
    two, one = example.solve(problem, w0, tolerance=1e-5), example.direct(problem, w0)
    assert two.success
    assert math.isclose(two.value, one.value, rel_tol=1e-6)  # of second order in the tolerance
    assert (two.y - example.best_head(problem, two.x)).norm() < 1e-6
    start, end = (float(example.loss(w, example.best_head(problem, w), problem.test)) for w in (w0, two.x))
    assert end < start / 10
