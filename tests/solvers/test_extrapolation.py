"""Extrapolation: weights by hand, exactness in flat space, order of what stands for logarithms, and what it gains."""

import itertools
import math

import pytest
import torch

from steepest import SPD, Grassmann, Sphere, Stiefel, minimize
from steepest.manifolds import Euclidean
from steepest.solvers import LBFGS, Armijo, ConjugateGradients, Extrapolated, Problem, SteepestDescent, TrustRegion
from steepest.solvers.extrapolation import _difference, _weights

PLAIN = SteepestDescent(barzilai_borwein=False, memory=1)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def quadratic(d, seed=0):
    """x^T A x / 2 - b^T x with condition 30, and its minimiser."""
    q = torch.linalg.qr(gaussian(d, d, seed=seed))[0]
    a = q * torch.logspace(0, math.log10(30), d, dtype=torch.float64) @ q.mT
    b = gaussian(d, seed=seed + 1)
    return a, b, (lambda x: x @ a @ x / 2 - b @ x), torch.linalg.solve(a, b)


@pytest.mark.parametrize("line_search", [Armijo(), Armijo(refine=True)], ids=str)
def test_exact_on_a_quadratic_with_as_many_iterates_as_dimensions(line_search):
    """Whatever the lengths of the steps: the gradients are dependent, and some combination of them is zero."""
    _, _, f, solution = quadratic(5)
    inner = SteepestDescent(line_search, barzilai_borwein=False, memory=1)
    method = Extrapolated(inner, memory=5, regularization=0.0, restart=True)
    result = minimize(f, torch.zeros(5, dtype=torch.float64), method=method, max_iterations=5, tolerance=0.0)
    # weights from a Gram matrix: half of the digits of gradients of size 1
    assert result.history[-1].gradient_norm < 1e-6 < 1e-3 < result.history[-2].gradient_norm
    torch.testing.assert_close(result.x, solution, atol=1e-6, rtol=0)


@pytest.mark.parametrize("restart", [True, False])
def test_a_jump_is_to_the_combination_with_the_least_gradient(restart):
    """By least squares on the iterates of plain descent: the best of a Krylov space."""
    a, b, f, _ = quadratic(12)
    x0 = gaussian(12, seed=4)
    xs = [x0]
    for _ in range(3):
        xs.append(minimize(f, xs[-1], method=SteepestDescent(), max_iterations=1).x)
    # the first step of a run has the length of a unit vector, or of the gradient: the same of each short run
    method = Extrapolated(_OneByOne(), memory=3, regularization=0.0, restart=restart)
    if not restart:
        method = Extrapolated(_OneByOne(), memory=1, regularization=0.0, restart=False)
        xs = xs[:2]
    result = minimize(f, x0, method=method, max_iterations=len(xs) - 1)
    points = torch.stack(xs)
    gradients = points @ a - b
    tail = torch.linalg.lstsq((gradients[:-1] - gradients[-1]).mT, -gradients[-1][:, None], driver="gelsd").solution
    expected = points[-1] + (points[:-1] - points[-1]).mT @ tail[:, 0]
    torch.testing.assert_close(result.history[-1].value, float(f(expected)), rtol=1e-8, atol=1e-8)
    assert result.history[-1].note["jump"] > 0


class _OneByOne(SteepestDescent):
    """Descent that remembers nothing, as a run of one iteration does."""

    def step(self, at, state):
        return super().step(at, {**self.init(at), "iteration": 0})


del _OneByOne.known["_OneByOne"]


def test_weights_with_regularization():
    g = gaussian(4, 9)
    gram, eye = g @ g.mT, torch.eye(4, dtype=torch.float64)
    c = torch.linalg.solve(gram + 0.1 * torch.linalg.matrix_norm(gram, 2) * eye, eye.sum(0))
    torch.testing.assert_close(_weights(g, 0.1), c / c.sum(), rtol=1e-12, atol=1e-12)
    same = _weights(g[:1].expand(3, 9), 0.0)  # of equal gradients any weights will do
    assert same.isfinite().all()
    assert abs(same.sum() - 1) < 1e-12


@pytest.mark.parametrize(("m", "shape"), [(Sphere(), (5,)), (Stiefel("canonical"), (6, 3)), (SPD(), (4, 4))], ids=str)
def test_differences_invert_the_retraction_to_third_order_or_better(m, shape):
    x = m.random_point(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    at = Problem(lambda x: x.square().sum(), m).at(x)
    z = at.random(torch.Generator().manual_seed(1))
    errors = [float((_difference(at, at.move(t * z)) - t * z).norm()) for t in (0.08, 0.04)]
    assert math.log2(errors[0] / errors[1]) > 2.8
    assert errors[1] < 1e-2 * float(0.04 * z.norm())


def problems():
    """Function, start, manifold."""
    d = 30 * torch.logspace(-2, 0, 40, dtype=torch.float64)
    yield "leading eigenvector", lambda x: -(d * x * x).sum(), Sphere().project(gaussian(40)), Sphere()
    a = gaussian(30, 30) @ gaussian(30, 30).mT / 30
    yield "leading subspace", lambda x: -(x * (a @ a.mT @ x)).sum(), Grassmann().project(gaussian(30, 3)), Grassmann()
    b = gaussian(20, 8, 8, seed=3)
    points = torch.linalg.matrix_exp(0.75 * (b + b.mT))
    start = torch.eye(8, dtype=torch.float64)
    yield "mean", lambda x: SPD().dist(x.expand_as(points), points).square().mean(), start, SPD()
    c, e = gaussian(12, 12, seed=15), gaussian(12, 12, seed=16)
    yield "procrustes", lambda x: (x @ c - e).square().sum() / 24, Stiefel().project(gaussian(12, 12)), Stiefel()


@pytest.mark.parametrize("problem", list(problems()), ids=lambda p: p[0])
def test_it_takes_fewer_iterations_than_the_method_alone(problem):
    name, f, x0, m = problem
    methods = PLAIN, Extrapolated(), Extrapolated(restart=True)
    runs = [minimize(f, x0, m, k, max_iterations=2000, tolerance=1e-5) for k in methods]
    assert runs[1].success, runs[1]
    assert runs[2].success, runs[2]
    assert abs(runs[1].value - runs[0].value) < 1e-5
    gain = {"mean": 0.7, "leading eigenvector": 0.6, "leading subspace": 0.8, "procrustes": 0.5}[name]  # measured: less
    assert runs[1].iterations < gain * runs[0].iterations, (runs[0], runs[1])
    assert runs[2].iterations <= runs[0].iterations
    for run in runs:
        values = [r.value for r in run.history]
        assert all(b <= a + 1e-12 * abs(a) for a, b in itertools.pairwise(values)), "a jump went up"


@pytest.mark.parametrize("inner", [LBFGS(), ConjugateGradients(), TrustRegion()], ids=lambda i: type(i).__name__)
def test_around_other_methods(inner):
    d = torch.arange(1.0, 13.0, dtype=torch.float64)[:, None]
    result = minimize(lambda x: (d * x * x).sum(), Stiefel().project(gaussian(12, 2)), Stiefel(), Extrapolated(inner))
    assert abs(result.value - 3) < 1e-9
    assert result.success
    assert Extrapolated(inner).order == max(1, inner.order)


def test_nothing_to_remember_that_a_jump_would_make_wrong():
    """The inner method's step survives a jump, its tensors do not."""
    _, _, f, _ = quadratic(6)
    at = Problem(f, Euclidean(1)).at(torch.zeros(6, dtype=torch.float64))
    method = Extrapolated(ConjugateGradients())
    kept = method._after(at, {"direction": torch.ones(6).double(), "step": 0.25, "note": {"step": 1.0}})
    assert kept["step"] == 0.25
    assert torch.equal(kept["direction"], -at.gradient)


def test_refusals():
    with pytest.raises(ValueError, match="memory: got 0"):
        Extrapolated(memory=0)
    with pytest.raises(ValueError, match="regularization: got -1"):
        Extrapolated(regularization=-1.0)
    with pytest.raises(ValueError, match="unknown method 'Nowhere'"):
        Extrapolated("Nowhere")
    with pytest.raises(ValueError, match="Extrapolated knows no coordinate directions of Sphere"):
        minimize(lambda x: x.sum(), torch.ones(1), Sphere(), Extrapolated("CoordinateDescent"))
