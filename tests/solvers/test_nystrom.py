"""The Nyström approximation against dense linear algebra; Newton's method with it."""

import itertools

import pytest
import torch

from steepest.manifolds import Euclidean, Grassmann, Sphere, Stiefel
from steepest.solvers import Newton, NystromNewton, Problem, minimize, nystrom
from steepest.solvers.nystrom import sketched

DOUBLE = torch.float64


def randn(*shape, seed=0):
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def symmetric(values, seed=0):
    q = torch.linalg.qr(randn(len(values), len(values), seed=seed))[0]
    return (q * torch.as_tensor(values, dtype=DOUBLE)) @ q.mT


def dense(low):
    return low.vectors.mT @ torch.diag(low.values) @ low.vectors


def test_where_the_function_is_linear():
    """Huber's function of each entry: far from zero the Hessian vanishes, and every product with it."""
    huber = lambda x: torch.where(x.abs() > 1, x.abs() - 0.5, x * x / 2).sum()  # noqa: E731
    x0 = torch.full((3,), 5.0, dtype=DOUBLE)
    for method in (NystromNewton(), NystromNewton(rank=2, refine=0)):
        assert minimize(huber, x0, Euclidean(1), method).success


def test_a_matrix_of_low_rank_is_found():
    h = symmetric([5.0, 2.0, 1.0] + [0.0] * 17)
    low = sketched(lambda z: z @ h, randn(6, 20, seed=1))
    torch.testing.assert_close(dense(low), h, atol=1e-12, rtol=0)  # rounding, and the shift by it
    torch.testing.assert_close(low.values, torch.tensor([5.0, 2, 1, 0, 0, 0], dtype=DOUBLE), atol=1e-12, rtol=0)


def test_it_is_the_formula_of_nystrom():
    h, omega = symmetric(torch.logspace(0, -3, 30)), randn(8, 30, seed=1)
    y = omega @ h
    expected = y.mT @ torch.linalg.solve(y @ omega.mT, y)
    torch.testing.assert_close(dense(sketched(lambda z: z @ h, omega)), expected, atol=1e-9, rtol=0)  # condition 1e3


def test_the_error_is_of_the_size_of_the_tail():
    """Frangella, Tropp and Udell 2021, corollary 2.3: of rank 2 p - 1 about 3 l_p + (2 e^2 / p) sum_{j >= p} l_j."""
    spectrum = torch.arange(1.0, 61, dtype=DOUBLE) ** -2
    h, p = symmetric(spectrum), 10
    bound = 3 * spectrum[p - 1] + 2 * torch.e**2 / p * spectrum[p - 1 :].sum()
    errors = [
        torch.linalg.matrix_norm(h - dense(sketched(lambda z: z @ h, randn(2 * p - 1, 60, seed=s))), 2)
        for s in range(1, 9)
    ]
    assert sum(errors) / len(errors) < bound
    assert min(errors) > spectrum[2 * p - 1] * 0.999  # nothing of this rank is nearer


def test_it_lies_below_a_semidefinite_matrix():
    h = symmetric(torch.logspace(0, -6, 25))
    gap = torch.linalg.eigvalsh(h - dense(sketched(lambda z: z @ h, randn(7, 25, seed=3))))
    assert gap.min() > -1e-13  # rounding of numbers of size one


@pytest.mark.parametrize("seed", range(6))
def test_an_indefinite_core_does_no_harm(seed):
    """The inverse of a core that is singular by chance would be without bound."""
    h = symmetric([4.0, -3.0, 2.0, -1.0] + [0.01, -0.01] * 18, seed)
    low = sketched(lambda z: z @ h, randn(12, 40, seed=seed + 10))
    assert torch.linalg.matrix_norm(h - dense(low), 2) < 0.5  # the tail is 0.01, its Frobenius norm 0.06
    torch.testing.assert_close(low.values[:4], torch.tensor([4.0, -3.0, 2.0, -1.0], dtype=DOUBLE), atol=0.1, rtol=0)


def test_dependent_vectors_are_joined_and_all_of_space_gives_the_matrix():
    h = symmetric([3.0, -2.0, 1.0, 0.5, -0.1])
    omega = randn(5, 5, seed=1)
    for rows in (omega, torch.cat([omega, omega[:2] + omega[1:3]])):
        low = sketched(lambda z: z @ h, rows)
        assert low.complete
        torch.testing.assert_close(dense(low), h, atol=1e-12, rtol=0)


@pytest.mark.parametrize("tail", [None, 0.0, 0.3])
def test_solve_inverts(tail):
    h = symmetric([4.0, -3.0, 2.0] + [0.0] * 6)
    low = sketched(lambda z: z @ h, randn(5, 9, seed=1))
    u = low.vectors.mT
    rest = low.tail if tail is None else tail
    matrix = u @ torch.diag(low.values.abs()) @ u.mT + rest * (torch.eye(9) - u @ u.mT) + 0.2 * torch.eye(9)
    z = randn(2, 9, seed=5)
    torch.testing.assert_close(low.solve(z, 0.2, tail), torch.linalg.solve(matrix, z.mT).mT)
    torch.testing.assert_close(low.product(z), z @ dense(low))


def test_what_is_not_finite_is_left_out():
    assert sketched(lambda z: z * torch.nan, randn(3, 5)).values.isnan().all()
    assert not len(sketched(lambda z: z * 0, randn(3, 5)).values)


def test_on_a_manifold_vectors_are_tangent():
    a = symmetric(torch.arange(8.0))
    problem = Problem(lambda x: (x.mT @ a @ x).trace() / 2, Stiefel())
    problem.curvature = True
    at = problem.at(Stiefel().random_point((8, 2), dtype=DOUBLE, generator=torch.Generator().manual_seed(0)))
    low = nystrom(at, 100, problem.generator(0))
    assert low.complete
    assert len(low.values) == Stiefel().dim((8, 2)) == 13
    torch.testing.assert_close(at.conform(low.vectors), low.vectors)
    z = at.random(problem.generator(1))
    torch.testing.assert_close(low.product(z), at.product(z))
    assert len(nystrom(at, 6, problem.generator(0)).values) in (4, 6)  # of an indefinite core two thirds


# The method. ----------------------------------------------------------------------------------------------------------


def logistic(n):
    a = randn(4 * n, n, seed=1) / torch.arange(1.0, n + 1, dtype=DOUBLE)
    y = torch.sign(a @ randn(n, seed=3) + 0.1 * randn(4 * n, seed=4))
    at = a.mT.contiguous()
    return lambda x: torch.nn.functional.softplus(-y * (x @ at)).mean() + 5e-7 * x @ x


def test_a_preconditioner_saves_products():
    fun, x0 = logistic(120), torch.zeros(120, dtype=DOUBLE)
    runs = {m: minimize(fun, x0, Euclidean(1), m, tolerance=1e-9) for m in (Newton(), NystromNewton(rank=40))}
    plain, ours = runs.values()
    assert plain.success
    assert ours.success
    assert abs(plain.value - ours.value) < 1e-12
    inner = [sum(r.note["inner"] for r in run.history[1:]) for run in (plain, ours)]
    assert inner[1] < 0.5 * inner[0]  # measured: 0.3


def test_an_adaptive_rank_follows_the_work():
    result = minimize(logistic(120), torch.zeros(120, dtype=DOUBLE), Euclidean(1), NystromNewton(), tolerance=1e-9)
    ranks = [r.note["rank"] for r in result.history[1:]]
    assert result.success
    assert ranks[0] == 8
    assert max(ranks) >= 16


def test_the_tail_is_superlinear_whatever_the_rank():
    a = symmetric(torch.logspace(0, -3, 40))
    x0 = Grassmann().random_point((40, 2), dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    method = NystromNewton(rank=3)
    result = minimize(lambda x: -((x.mT @ a).mT * x).sum() / 2, x0, Grassmann(), method, tolerance=1e-11)
    norms = [r.gradient_norm for r in result.history]
    assert result.success
    assert min(after / before for before, after in itertools.pairwise(norms)) < 3e-3  # and no more is asked
    assert abs(result.value + torch.linalg.eigvalsh(a)[-2:].sum() / 2) < 1e-13


def test_saddles_are_left():
    a = torch.diag(torch.arange(10.0, dtype=DOUBLE))
    x0 = Sphere().project(torch.eye(10, dtype=DOUBLE)[0] + 1e-4 * randn(10))
    for method in (NystromNewton(rank=4), NystromNewton(rank=12, refine=0)):
        result = minimize(lambda x: -x @ a @ x / 2, x0, Sphere(), method, tolerance=1e-8)
        assert result.success
        assert abs(result.value + 4.5) < 1e-12


def test_the_sketched_step_alone_solves_what_has_low_rank():
    """With a Hessian of rank 5 below the sketch's, and nothing else but ridge, its step is nearly Newton's."""
    a, b = randn(60, 5, seed=1), randn(60, seed=2)
    c = torch.cat([a, torch.zeros(60, 55, dtype=DOUBLE)], 1) @ symmetric(torch.ones(60))
    fun = lambda x: ((x @ c.mT) - b).square().sum() / 2  # noqa: E731
    result = minimize(fun, torch.ones(60, dtype=DOUBLE), Euclidean(1), NystromNewton(rank=8, refine=0), tolerance=1e-9)
    assert result.success
    assert result.iterations < 12


def test_errors():
    for options, match in (({"rank": 0}, "rank"), ({"every": 0}, "every"), ({"damping": -1.0}, "damping")):
        with pytest.raises(ValueError, match=match):
            NystromNewton(**options)
    with pytest.raises(ValueError, match="adaptive"):
        NystromNewton(refine=0)
