"""Constraints: against closed forms, against scipy, and by the conditions of Karush, Kuhn and Tucker."""

import numpy as np
import pytest
import scipy.optimize
import torch

from steepest.manifolds import SPD, Euclidean, Sphere, Stiefel
from steepest.solvers import (
    AugmentedLagrangian,
    ConstrainedMethod,
    ConstrainedProblem,
    SketchedNewton,
    minimize_constrained,
)

DOUBLE = torch.float64
BOTH = [*AugmentedLagrangian.examples(), *SketchedNewton.examples()]


def randn(*shape, seed=0):
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def symmetric(n, seed):
    a = randn(n, n, seed=seed)
    return a + a.mT


def check_kkt(result, fun, manifold, equalities=None, inequalities=None, tolerance=1e-7):
    """The conditions, by autograd at the result, without the library's own count of them."""
    x = result.x.clone().requires_grad_()
    value = fun(x)
    if equalities is not None:
        c = equalities(x)
        assert c.abs().max() <= tolerance
        value = value + (result.equality_multipliers * c).sum()
    if inequalities is not None:
        d, mu = inequalities(x), result.inequality_multipliers
        assert mu.shape == d.shape
        assert mu.min() >= 0
        assert d.max() <= tolerance
        assert (mu * d).abs().max() <= tolerance * (1 + mu.max())
        value = value + (mu * d).sum()
    (g,) = torch.autograd.grad(value, x)
    assert manifold.norm(result.x, manifold.grad(result.x, g)) <= tolerance


@pytest.mark.parametrize("method", AugmentedLagrangian.examples(), ids=str)
def test_nonnegative_components_of_a_positive_matrix_are_perrons(method):
    a = randn(8, 8, seed=1).abs()
    a = a + a.mT
    x0 = Sphere().project(randn(8, seed=2))
    result = minimize_constrained(lambda x: -x @ a @ x / 2, x0, Sphere(), None, lambda x: -x, method, tolerance=1e-8)
    w, v = torch.linalg.eigh(a)
    assert result.success
    torch.testing.assert_close(result.x, v[:, -1].abs(), atol=1e-7, rtol=0)  # tolerance over the gap of eigenvalues
    assert abs(result.value + w[-1] / 2) < 1e-12


def test_active_bounds_on_the_sphere():
    """Where all is known: the nearest nonnegative unit vector to a target is its positive part, normalised."""
    b = torch.tensor([1.0, -2.0, 0.5, -0.1, 2.0], dtype=DOUBLE)
    x0 = torch.full((5,), 5**-0.5, dtype=DOUBLE)
    fun, d = lambda x: -x @ b, lambda x: -x
    result = minimize_constrained(fun, x0, Sphere(), inequalities=d, tolerance=1e-9)
    best = b.clamp_min(0)
    torch.testing.assert_close(result.x, best / best.norm(), atol=1e-8, rtol=0)
    torch.testing.assert_close(result.inequality_multipliers, (-b).clamp_min(0), atol=1e-8, rtol=0)
    check_kkt(result, fun, Sphere(), None, d)


@pytest.mark.parametrize("method", BOTH, ids=str)
def test_a_plane_and_the_sphere(method):
    """min b.x on |x| = 1, A x = c: x = A^+ c - r p / |p| with p the part of b along the plane, r^2 = 1 - |A^+ c|^2."""
    a, b, c = randn(2, 7, seed=1), randn(7, seed=2), torch.tensor([0.3, -0.2], dtype=DOUBLE)
    base = torch.linalg.pinv(a) @ c
    p = b - torch.linalg.pinv(a) @ (a @ b)
    expected = base - (1 - base @ base).sqrt() * p / p.norm()
    fun, equalities = lambda x: b @ x, lambda x: a @ x - c
    x0 = Sphere().project(randn(7, seed=3))
    result = minimize_constrained(fun, x0, Sphere(), equalities, method=method, tolerance=1e-8)
    assert result.success
    torch.testing.assert_close(result.x, expected, atol=1e-7, rtol=0)
    check_kkt(result, fun, Sphere(), equalities)


@pytest.mark.parametrize("method", BOTH[1:], ids=str)
def test_a_quadratic_with_a_sphere_by_the_secular_equation(method):
    """min x.B x / 2 + b.x with |x|^2 = 1, as a constraint of flat space: (B + 2 m) x = -b with the m above -l_1 / 2 for
    which x has length one."""
    m, b = symmetric(6, seed=4), randn(6, seed=5)
    w, v = torch.linalg.eigh(m)
    beta = (v.mT @ b).numpy()
    length = lambda s: np.sum((beta / (w.numpy() + s)) ** 2) - 1  # noqa: E731
    s = scipy.optimize.brentq(length, -w[0].item() + 1e-6, 1e3, xtol=1e-14)
    expected = -v @ torch.tensor(beta / (w.numpy() + s))
    fun, equalities = lambda x: x @ m @ x / 2 + b @ x, lambda x: x @ x - 1
    x0 = expected + 0.3 * randn(6, seed=6)
    result = minimize_constrained(fun, x0, Euclidean(1), equalities, method=method, tolerance=1e-8)
    assert result.success
    torch.testing.assert_close(result.x, expected, atol=1e-7, rtol=0)
    assert result.equality_multipliers.shape == ()
    assert abs(2 * result.equality_multipliers.item() - s) < 1e-6


def test_as_scipy_on_a_flat_problem():
    """Hock and Schittkowski 1981, problem 71, with a product, a sphere and bounds."""
    fun = lambda x: x[0] * x[3] * (x[0] + x[1] + x[2]) + x[2]  # noqa: E731
    equalities = lambda x: (x @ x - 40)[None]  # noqa: E731
    inequalities = lambda x: torch.cat([(25 - x.prod())[None], 1 - x, x - 5])  # noqa: E731
    x0 = torch.tensor([1.0, 5.0, 5.0, 1.0], dtype=DOUBLE)
    result = minimize_constrained(fun, x0, None, equalities, inequalities, tolerance=1e-8)
    theirs = scipy.optimize.minimize(
        lambda x: fun(torch.tensor(x)).item(),
        x0.numpy(),
        method="SLSQP",
        tol=1e-12,
        constraints=[
            {"type": "eq", "fun": lambda x: equalities(torch.tensor(x)).numpy()},
            {"type": "ineq", "fun": lambda x: -inequalities(torch.tensor(x)).numpy()},
        ],
    )
    assert result.success
    assert abs(result.value - theirs.fun) < 1e-6
    assert abs(result.value - 17.0140173) < 1e-6  # the book's
    np.testing.assert_allclose(result.x.numpy(), theirs.x, atol=1e-5)  # differences are theirs
    check_kkt(result, fun, Euclidean(1), equalities, inequalities)


@pytest.mark.parametrize("method", BOTH[::2], ids=str)
def test_matrices_with_a_kernel_in_the_frame(method):
    """On Stiefel, with one entry fixed; and on SPD a determinant: the nearest to C in trace is a multiple of C^-1."""
    a = symmetric(5, seed=1)
    x0 = Stiefel().random_point((5, 2), dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    fun, equalities = lambda x: (x.mT @ a @ x * torch.tensor([1.0, 2.0])).sum(), lambda x: x[0, :1]
    result = minimize_constrained(fun, x0, Stiefel(), equalities, method=method, tolerance=1e-7)
    assert result.success
    check_kkt(result, fun, Stiefel(), equalities)
    c = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=DOUBLE))
    result = minimize_constrained(
        lambda x: (c @ x).trace(), torch.eye(3, dtype=DOUBLE), SPD(), torch.logdet, method=method, tolerance=1e-8
    )
    torch.testing.assert_close(result.x, 2 * c.inverse(), atol=1e-7, rtol=0)


def test_the_gradient_of_the_exact_augmented_lagrangian():
    """By differences along a geodesic and the multipliers; of second order, hence the tolerance."""
    from steepest.solvers.sketched_newton import _Here

    a, b = symmetric(6, seed=1), randn(2, 6, seed=2)
    problem = ConstrainedProblem(
        lambda x: x @ a @ x + x[0] ** 3, Sphere(), lambda x: torch.cat([b @ x, x[:1] ** 2 * x[1:2]]), None
    )
    x, equality, eta = Sphere().project(randn(6, seed=3)), randn(3, seed=4), (3.0, 0.7)
    here = _Here(problem, x, equality)
    z, q, h = here.at.conform(randn(6, seed=5)), randn(3, seed=6), 1e-5
    ends = [_Here(problem, Sphere().exp(x, s * h * z), equality + s * h * q).merit(eta) for s in (1, -1)]
    slope = here.merit_gradient(eta) @ torch.cat([z, q])
    assert abs((ends[0] - ends[1]) / (2 * h) - slope) < 1e-7 * abs(slope)


def test_projections_solve_what_is_singular():
    from steepest.solvers.sketched_newton import _Projections

    k = symmetric(12, seed=1)
    w, v = torch.linalg.eigh(k)
    k = v * torch.where(w.abs() < 1, 0, w) @ v.mT
    b = k @ randn(12, seed=2)
    for kind in ("kaczmarz", "gaussian"):
        solver = _Projections(k, b, kind, 4)
        solver.run(torch.Generator().manual_seed(0), 1e-9, 10_000)
        torch.testing.assert_close(solver.z, torch.linalg.pinv(k, rtol=1e-9) @ b, atol=1e-8, rtol=0)


def test_sketched_newton_is_superlinear():
    a, b = symmetric(8, seed=1), randn(2, 8, seed=2)
    x0 = Sphere().project(randn(8, seed=3))
    result = minimize_constrained(
        lambda x: x @ a @ x / 2, x0, Sphere(), lambda x: b @ x - 0.1, None, SketchedNewton(), tolerance=1e-10
    )
    sizes = [max(r.gradient_norm, r.note["violation"]) for r in result.history]
    assert result.success
    assert sizes[-1] < 1e-2 * sizes[-2] < 1e-3 * sizes[-3]


# What is around it. ---------------------------------------------------------------------------------------------------


def run(**options):
    x0 = torch.tensor([0.6, 0.0, 0.8], dtype=DOUBLE)
    return minimize_constrained(lambda x: x[0], x0, Sphere(), lambda x: x.sum(), **options)


@pytest.mark.parametrize("method", ["AugmentedLagrangian", "sketched_newton"])
def test_limits_history_callback_and_table(method, capsys):
    assert run(method=method, max_iterations=2).iterations == 2
    assert run(method=method, max_evaluations=1).iterations <= 1
    assert run(method=method, max_seconds=0.0).iterations <= 1
    ended = run(method=method, verbose=1, callback=lambda record, x: record.iteration == 1)
    assert ended.iterations == 1
    assert "callback" in ended.reason
    assert [r.iteration for r in ended.history] == [0, 1]
    assert len(capsys.readouterr().out.splitlines()) == 4  # names, two records, the reason
    whole = run(method=method)
    assert whole.success
    assert whole.residual <= 1e-6
    assert whole.evaluations.total == whole.history[-1].evaluations
    assert "violation" in repr(whole)


def test_two_runs_are_the_same_and_torchs_generator_rests():
    before = torch.get_rng_state()
    first, second = run(method="SketchedNewton", seed=3), run(method="SketchedNewton", seed=3)
    assert torch.equal(first.x, second.x)
    assert torch.equal(before, torch.get_rng_state())


def test_without_a_common_point_it_says_so():
    result = minimize_constrained(
        lambda x: x[0], torch.tensor([0.6, 0.8], dtype=DOUBLE), Sphere(), lambda x: x[0] - 3, max_iterations=200
    )
    assert not result.success
    assert result.violation > 1.9


def test_single_and_half_precision():
    for dtype in (torch.float32, torch.bfloat16):
        x0 = torch.tensor([0.0, 0.0, 1.0], dtype=dtype)
        result = minimize_constrained(lambda x: x[0], x0, Sphere(), lambda x: x.sum(), tolerance=1e-3)
        assert result.success
        assert result.x.dtype == torch.float32


def test_second_derivatives_that_are_not_finite_end_a_run():
    """|x|^(3/2) has a gradient at zero, and no second derivative."""
    x0 = torch.tensor([0.0, 2.0], dtype=DOUBLE)
    power = lambda x: (x.abs() ** 1.5).sum()  # noqa: E731
    result = minimize_constrained(power, x0, None, lambda x: x.sum() - 1, method="sketched_newton")
    assert not result.success
    assert "not finite" in result.reason


def test_methods_are_values():
    for method in BOTH:
        assert ConstrainedMethod.from_spec(method.to_spec()) == method


def test_errors():
    x0 = torch.tensor([0.6, 0.8], dtype=DOUBLE)
    cases = [
        ({}, ValueError, "use `minimize`"),
        ({"equalities": lambda x: x[0] / 0}, ValueError, "equalities: not finite"),
        ({"inequalities": lambda x: x[0] / 0}, ValueError, "inequalities: not finite"),
        ({"equalities": lambda x: 0.0}, TypeError, "equalities: got float"),
        ({"equalities": lambda x: x[0] + 0j}, TypeError, "real numbers"),
        ({"inequalities": lambda x: x, "method": "SketchedNewton"}, ValueError, "AugmentedLagrangian"),
        ({"equalities": lambda x: x, "method": "Newton"}, ValueError, "unknown 'Newton'"),
        ({"equalities": lambda x: x, "method": 3}, TypeError, "method: got 3"),
        ({"equalities": lambda x: x, "tolerance": -1.0}, ValueError, "tolerance"),
    ]
    for options, error, match in cases:
        with pytest.raises(error, match=match):
            minimize_constrained(lambda x: x.sum(), x0, Sphere(), **options)
    for options in ({"sketch": "sparse"}, {"size": 0}, {"residual": 2.0}, {"sweeps": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            SketchedNewton(**options)
    for options in ({"penalty": 0.0}, {"growth": 1.0}, {"improvement": 1.0}, {"inner": "nothing"}):
        with pytest.raises(ValueError, match="unknown" if "inner" in options else next(iter(options))):
            AugmentedLagrangian(**options)
