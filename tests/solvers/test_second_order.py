"""Second-order methods: their order of convergence, their models against dense linear algebra, saddles, other
libraries."""

import itertools
import math

import numpy as np
import pytest
import torch

from steepest import SPD, Euclidean, FixedRank, Grassmann, Product, Sphere, Stiefel, minimize
from steepest.solvers import (
    CubicNewton,
    FiniteDifference,
    GaussNewton,
    LeastSquares,
    Newton,
    Problem,
    TrustRegion,
)
from steepest.solvers.truncated_cg import truncated_cg

F64 = torch.float64


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=gen(seed))


def symmetric(n, seed=0):
    a = randn(n, n, seed=seed)
    return a + a.mT


def brockett():
    a, n = symmetric(8), torch.diag(torch.arange(3.0, 0.0, -1.0, dtype=F64))
    return Stiefel(), lambda x: -(x.mT @ a @ x @ n).trace(), (8, 3)


def subspace():
    a = symmetric(9)
    return Grassmann(), lambda x: -(x.mT @ a @ x).trace(), (9, 2)


def affine_mean():
    m = SPD()
    points = m.random_point((6, 4, 4), dtype=F64, generator=gen())
    return m, lambda x: m.dist(x.expand_as(points), points).square().sum() / 2, (4, 4)


PROBLEMS = {"Stiefel": brockett, "Grassmann": subspace, "SPD": affine_mean}


def tail(method, problem):
    """g_(k+1) / g_k^1.8 of the last two steps that end above rounding, in units of the first gradient."""
    m, fun, shape = PROBLEMS[problem]()
    x0 = m.random_point(shape, dtype=F64, generator=gen(3))
    result = minimize(fun, x0, m, method, tolerance=1e-12, max_iterations=60)
    assert result.success, result
    norms = [r.gradient_norm / result.history[0].gradient_norm for r in result.history]
    norms = [n for n in norms if n > 1e-13]
    return [b / a**1.8 for a, b in itertools.pairwise(norms)][-2:]


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("method", [TrustRegion(), Newton(), CubicNewton()], ids=lambda m: type(m).__name__)
def test_convergence_is_quadratic(method, problem):
    # 30: the constant of quadratic convergence is the Hessian's Lipschitz constant over curvatures, some units here
    assert max(tail(method, problem)) < 30


def test_a_linear_method_has_no_such_tail():
    assert max(tail(TrustRegion(theta=0.0), "Grassmann")) > 1e3


# The model and its minimiser. -----------------------------------------------------------------------------------------


def model(h, g, z):
    return float(g @ z + z @ h @ z / 2)


def run_cg(h, g, radius=math.inf, residual=1e-12, limit=100):
    return truncated_cg(lambda z: h @ z, g, float(g.norm()), radius, residual, limit)


def test_truncated_cg_solves():
    a, g = randn(12, 12), randn(12, seed=1)
    h = a @ a.mT + torch.eye(12, dtype=F64)
    path = run_cg(h, g)
    torch.testing.assert_close(path.end.z, -torch.linalg.solve(h, g), rtol=1e-9, atol=1e-9)  # condition 50
    assert path.why == "solved"
    assert path.end.decrease == pytest.approx(-model(h, g, path.end.z), rel=1e-12)
    assert path.end.length == pytest.approx(float(path.end.z.norm()), rel=1e-9)


@pytest.mark.parametrize("shift", [0.0, -30.0])
def test_shorter_steps_are_those_of_smaller_balls(shift):
    h, g = torch.diag(torch.logspace(-2, 2, 12, dtype=F64) + shift), torch.logspace(0, 2, 12, dtype=F64)
    path = run_cg(h, g, 60.0)
    assert path.end.length == pytest.approx(60.0)
    assert len(path.marks) >= 2, "shorter steps are all along the gradient"
    for step in itertools.islice(path.steps(), 1, 5):
        direct = run_cg(h, g, step.length).end
        torch.testing.assert_close(step.z, direct.z, rtol=1e-9, atol=1e-12)
        assert step.decrease == pytest.approx(-model(h, g, step.z), rel=1e-9)
        assert step.decrease == pytest.approx(direct.decrease, rel=1e-9)


def test_negative_curvature_is_followed():
    h, g = torch.diag(torch.tensor([4.0, -1.0], dtype=F64)), torch.tensor([1.0, 1e-3], dtype=F64)
    path = run_cg(h, g, radius=10.0)
    assert path.why == "curvature"
    assert path.end.z[1] < -9
    free = run_cg(h, g)
    assert free.why == "curvature"
    assert g @ free.end.z < 0


def test_a_model_that_rises_is_not_trusted():
    h, g = torch.diag(torch.arange(1.0, 6.0, dtype=F64)), torch.ones(5, dtype=F64)
    calls = iter(range(100))

    def product(z):  # the first is right, the others are not
        return h @ z if next(calls) == 0 else 1e-3 * h.flip(0, 1) @ z

    path = truncated_cg(product, g, float(g.norm()), math.inf, 1e-9, 3)
    assert path.end is path.first


PLACES = [
    (Stiefel("canonical"), (5, 2)),
    (SPD(), (3, 3)),
    (FixedRank(), ((4, 2), (2, 3))),
    (Product((Sphere(), Euclidean(1))), ((4,), (3,))),
]


def flat(x):
    return torch.cat([t.reshape(-1) for t in (x if isinstance(x, tuple) else (x,))])


@pytest.mark.parametrize(("manifold", "shape"), PLACES, ids=lambda p: str(p)[:20])
def test_finite_differences_err_by_the_step(manifold, shape):
    def fun(x):
        y = flat(manifold.represent(x))
        return (y * torch.arange(1, len(y) + 1) + y.roll(1) ** 3).exp().log1p().sum()

    problem = Problem(fun, manifold)
    problem.curvature = True
    at = problem.at(manifold.random_point(shape, dtype=F64, generator=gen(2)))
    z = at.random(gen())
    exact = at.product(z)
    errors = [float((FiniteDifference(s).operator(at)(z) - exact).norm() / exact.norm()) for s in (1e-3, 1e-4, None)]
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.3)
    assert errors[2] < 1e-6  # half of the digits, and some for a gradient that changes fast


@pytest.mark.parametrize(("manifold", "shape"), PLACES, ids=lambda p: str(p)[:20])
def test_gauss_newton_is_the_dense_product(manifold, shape):
    a = randn(11, len(flat(manifold.represent(manifold.random_point(shape, dtype=F64, generator=gen())))))
    fun = LeastSquares(lambda x: ((a @ flat(manifold.represent(x))).sin(), flat(manifold.represent(x))[:2]))
    at = Problem(fun, manifold).at(manifold.random_point(shape, dtype=F64, generator=gen(2)))
    zero = torch.zeros(at.size, dtype=F64)
    moved = torch.func.jacrev(lambda z: torch.cat(fun.residual(manifold._move(at.frame, at.unravel(z)))))
    j = moved(zero)
    product = GaussNewton().operator(at)
    for seed in range(2):
        z = at.random(gen(seed))
        torch.testing.assert_close(product(z), j.mT @ (j @ z), rtol=1e-10, atol=1e-10)
    assert at.problem.evaluations.products == 2
    assert not at.covector[0].requires_grad


@pytest.mark.parametrize("dtype", [F64, torch.complex128])
def test_residuals_that_are_zero_have_second_derivatives(dtype):
    """Of |x|^2 / 2 the Hessian is the identity, at zero entries too."""
    problem = Problem(LeastSquares(lambda x: x), Euclidean(1))
    problem.curvature = True
    at = problem.at(torch.tensor([0.0, 2.0, 0.0], dtype=dtype))
    z = at.random(gen())
    torch.testing.assert_close(at.product(z), z)


def test_gauss_newton_needs_a_residual():
    with pytest.raises(TypeError, match=r"fun=LeastSquares\(residual\)"):
        minimize(lambda x: x.square().sum(), torch.ones(2), method=TrustRegion(GaussNewton()))


def test_gauss_newton_fits():
    """Complex, with a residual of zero: J^H J is the Hessian there, and the tail is as fast as Newton's."""
    goal = torch.view_as_complex(randn(6, 2, 2)) @ torch.view_as_complex(randn(2, 5, 2, seed=1))
    start = (torch.view_as_complex(randn(6, 2, 2, seed=2)), torch.view_as_complex(randn(2, 5, 2, seed=3)))
    fun = LeastSquares(lambda x: x[0] @ x[1] - goal)
    result = minimize(fun, start, FixedRank(), TrustRegion(GaussNewton()), tolerance=1e-9)
    assert result.success
    assert result.value < 1e-18
    assert result.iterations < 40


# The methods. ---------------------------------------------------------------------------------------------------------

SADDLE = [
    TrustRegion(),
    TrustRegion(FiniteDifference()),
    Newton(),
    CubicNewton(),
    CubicNewton(every=4),
]


@pytest.mark.parametrize("method", SADDLE, ids=str)
def test_saddles_are_left(method):
    a = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=F64))
    x0 = torch.nn.functional.normalize(torch.tensor([1e-7, 1e-7, 1.0, 1e-7, 1e-7], dtype=F64), dim=0)
    result = minimize(lambda x: x @ a @ x, x0, Sphere(), method, tolerance=1e-9, max_iterations=60)
    assert result.success
    assert result.value == pytest.approx(1.0, abs=1e-12)


def rosenbrock(x):
    return 100 * (x[1:] - x[:-1] ** 2).square().sum() + (1 - x[:-1]).square().sum()


@pytest.mark.parametrize("method", [TrustRegion(radius=1e4), Newton(), CubicNewton()], ids=lambda m: type(m).__name__)
def test_rosenbrock(method):
    x0 = torch.tensor([-1.2, 1.0], dtype=F64)
    result = minimize(rosenbrock, x0, method=method, tolerance=1e-8)
    assert result.success
    torch.testing.assert_close(result.x, torch.ones(2, dtype=F64), rtol=1e-7, atol=0)  # least curvature 0.4
    assert result.iterations < 40


def test_steps_that_fail_take_no_products():
    x0 = torch.tensor([-1.2, 1.0, -1.2, 1.0], dtype=F64)
    result = minimize(rosenbrock, x0, method=TrustRegion(radius=1e4), tolerance=1e-8)
    assert result.evaluations.values > result.iterations + 1, "no step failed"
    assert result.evaluations.products == sum(r.note["inner"] for r in result.history[1:])


def test_solutions_are_no_more_exact_than_asked_for():
    a, m = symmetric(80), Grassmann()
    x0 = m.random_point((80, 2), dtype=F64, generator=gen(3))
    rough, fine = (minimize(lambda x: -(x.mT @ a @ x).trace(), x0, m, "TrustRegion", tolerance=t) for t in (1e-4, 1e-9))
    k = rough.iterations
    assert rough.history[k].gradient_norm <= 1e-4
    assert rough.history[k - 1].gradient_norm == fine.history[k - 1].gradient_norm
    assert rough.evaluations.products < sum(r.note["inner"] for r in fine.history[1 : k + 1])


def test_the_unit_of_the_function_does_not_matter():
    m, fun, shape = subspace()
    x0 = m.random_point(shape, dtype=F64, generator=gen(3))
    for method in ("TrustRegion", "Newton", "CubicNewton"):
        ones, small = (minimize(lambda x, c=c: c * fun(x), x0, m, method, tolerance=c * 1e-6) for c in (1, 2.0**-30))
        assert [r.evaluations for r in ones.history] == [r.evaluations for r in small.history], method


def test_values_that_round_do_not_stop_it():
    """With a constant of 1e12 the function's values have three digits behind the point."""
    m, fun, shape = subspace()
    x0 = m.random_point(shape, dtype=F64, generator=gen(3))
    for method, success in ((TrustRegion(), 1), (Newton(), 1), (CubicNewton(), 1), (TrustRegion(regularization=0), 0)):
        result = minimize(lambda x: fun(x) + 1e12, x0, m, method, tolerance=1e-9, max_iterations=40)
        assert result.success == success, result


def test_the_table_says_why_inner_iterations_end(capsys):
    m, fun, shape = subspace()
    minimize(fun, m.random_point(shape, dtype=F64, generator=gen(3)), m, "TrustRegion", verbose=1)
    table = capsys.readouterr().out
    assert "radius" in table
    assert "ended solved" in table


def test_trust_region_agrees_with_pymanopt():
    pymanopt = pytest.importorskip("pymanopt")
    from pymanopt.optimizers import TrustRegions

    _, fun, (n, p) = subspace()
    there = pymanopt.manifolds.Grassmann(n, p)
    x0 = Grassmann().random_point((n, p), dtype=F64, generator=gen(3))
    cost = pymanopt.function.pytorch(there)(fun)
    with np.errstate(all="ignore"):
        theirs = TrustRegions(verbosity=0, min_gradient_norm=1e-9).run(
            pymanopt.Problem(there, cost), initial_point=x0.numpy()
        )
    ours = minimize(fun, x0, Grassmann(), "TrustRegion", tolerance=1e-9)
    assert ours.value == pytest.approx(theirs.cost, abs=1e-12)
    assert Grassmann().dist(ours.x, torch.from_numpy(theirs.point)) < 1e-8


# Cubic regularisation. ------------------------------------------------------------------------------------------------


def cubic_minimiser(h, g, m):
    """By bisection on the length, with dense solves: (H + m |z| / 2) z = -g."""
    w = torch.linalg.eigvalsh(h)
    low, high = max(0.0, -2 * float(w[0]) / m), 1e6
    eye = torch.eye(len(g), dtype=F64)
    for _ in range(200):
        r = (low + high) / 2
        z = -torch.linalg.solve(h + m * r / 2 * eye, g)
        low, high = (r, high) if float(z.norm()) > r else (low, r)
    return z


def test_lazy_steps_are_those_of_the_paper():
    """Algorithm 1 with every = 2, by dense linear algebra, on a plain space."""

    def fun(x):
        return (x**4).sum() / 4 + x @ torch.tensor([1.0, -2.0, 0.5], dtype=F64) + x[0] * x[1] * x[2]

    grad, hess = torch.func.grad(fun), torch.func.hessian(fun)
    x = x0 = torch.tensor([1.0, -0.5, 0.3], dtype=F64)
    h, m, expected = hess(x), 50.0, []
    for k in range(5):
        h = h if k % 2 else hess(x)
        x = x + cubic_minimiser(h, grad(x), m)
        m /= 2  # every first attempt succeeds
        expected.append(float(fun(x)))
    method = CubicNewton(every=2, smoothness=50.0)
    result = minimize(fun, x0, method=method, max_iterations=5, tolerance=0.0)
    assert [r.value for r in result.history[1:]] == pytest.approx(expected, rel=1e-12)


def test_the_cubic_constant_follows_the_models_truth():
    """From 0 to Newton's step 1 the function falls by 4% of what the model says."""
    x0 = torch.zeros(1, dtype=F64)
    result = minimize(
        lambda x: (-x + x**2 / 2 + 0.48 * x**4).sum(), x0, method=CubicNewton(smoothness=1e-3), max_iterations=1
    )
    assert result.history[1].note["smoothness"] > 1e-3


def test_lazy_steps_do_not_see_the_scale_of_factors():
    """Where frames turn from point to point, gradients must be carried to the Hessian, and steps back."""
    fun = LeastSquares(lambda x: x[0] @ x[1] - randn(5, 2) @ randn(2, 4, seed=1))
    b, a, m = randn(5, 2, seed=2), randn(2, 4, seed=3), torch.tensor([[3.0, 1.0], [-2.0, 0.5]], dtype=F64)
    runs = [
        minimize(fun, x0, FixedRank(), CubicNewton(every=4), max_iterations=8, tolerance=0.0)
        for x0 in ((b, a), (b @ m, torch.linalg.solve(m, a)))
    ]
    values = [[r.value for r in run.history] for run in runs]
    assert values[0] == pytest.approx(values[1], rel=1e-6)  # rounding, in the condition of the factors


@pytest.mark.parametrize("every", [1, 3])
def test_a_hessian_takes_as_many_products_as_there_are_dimensions(every):
    m, fun, shape = brockett()
    x0 = m.random_point(shape, dtype=F64, generator=gen(3))
    result = minimize(fun, x0, m, CubicNewton(every=every), tolerance=1e-10)
    ages = [r.note.get("age") for r in result.history[1:]]
    assert result.success
    assert result.evaluations.products == ages.count(0) * m.dim(shape)


def test_large_problems_are_refused():
    with pytest.raises(ValueError, match="max_size = 10 allows; pass max_size=20"):
        minimize(lambda x: x.sum(), torch.ones(10, 2), method=CubicNewton(max_size=10))
