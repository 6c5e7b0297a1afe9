"""Coordinate descent: what its directions are, that they are all of them, and that steps stay on the manifold."""

import itertools

import pytest
import torch

from steepest import SPD, Grassmann, Orthogonal, Sphere, Stiefel, minimize
from steepest.manifolds import Euclidean, IndefiniteStiefel, PSDFixedRank, SymplecticStiefel
from steepest.manifolds.quadratic import Quadratic
from steepest.solvers import CoordinateDescent, Problem, Wolfe
from steepest.solvers.coordinates import coordinates
from steepest.solvers.coordinates.base import match, matches


def double(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


LORENTZ = IndefiniteStiefel(double(-1.0, 1.0, 1.0, 1.0).diag(), (-1,))
MIXED = IndefiniteStiefel(double(2.0, -0.5, 1.0, -3.0, 0.3).diag(), (1, -1))
PLACES = [
    (Stiefel("canonical"), (5, 2)),
    (Stiefel(), (4, 3)),
    (Grassmann(), (6, 2)),
    (Orthogonal(), (5, 5)),
    (LORENTZ, (4, 1)),
    (MIXED, (5, 2)),
    (SymplecticStiefel(), (6, 4)),
    (SymplecticStiefel(), (2, 2)),
    (SPD(), (4, 4)),
    (PSDFixedRank(), (5, 2)),
    (Euclidean(), (3, 2)),
]


def place(m, shape, seed=0, batch=()):
    """An iterate of a function that depends on what the point stands for alone, and is not linear."""
    x = m.random_point((*batch, *shape), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    goal = gaussian(*m.represent(x).shape, seed=seed + 1)
    return Problem(lambda x: (m.represent(x) - goal).square().sum() + (goal * m.represent(x)).sum().sin(), m).at(x)


def directions(rule, at):
    """(round, number in it, slope) of every direction."""
    w = rule.start(at)
    for k in range(rule.rounds(at.x)):
        for number, slope in enumerate(rule.slopes(w, k, None).unbind(-1)):
            yield k, number, slope


def along(rule, at, k, number, t):
    """The point moved by t along one direction alone."""
    w = rule.start(at)
    only = torch.zeros_like(rule.slopes(w, k, None))
    only[..., number] = t
    return rule.point(rule.turn(w, k, None, only))


@pytest.mark.parametrize(("m", "shape"), PLACES, ids=str)
def test_slopes_are_derivatives_along_directions_that_span(m, shape):
    at, rule, columns = place(m, shape), coordinates(m), []
    for k, number, slope in directions(rule, at):
        ahead, behind = (along(rule, at, k, number, t) for t in (1e-5, -1e-5))
        difference = (at.problem.value(ahead) - at.problem.value(behind)) / 2e-5
        assert abs(difference - slope) < 1e-7 * (1 + abs(slope))  # differences err by eps / 1e-5 and 1e-10
        columns.append(((ahead - behind) / 2e-5).flatten())
    found = m.push(at.x, torch.stack(columns).view(-1, *at.x.shape)) if m.represent(at.x) is not at.x else columns
    found = torch.stack(list(found)).flatten(1)  # of a quotient, the horizontal parts
    assert torch.linalg.matrix_rank(found, rtol=1e-7) == m.dim(shape)


ORTHONORMAL = [(m, shape) for m, shape in PLACES if not (m == Stiefel() or isinstance(m, Quadratic))]


@pytest.mark.parametrize(("m", "shape"), ORTHONORMAL, ids=str)
def test_squares_of_slopes_sum_to_the_square_of_the_norm_of_the_gradient(m, shape):
    at = place(m, shape)
    found = sum(slope.square() for *_, slope in directions(coordinates(m), at))
    gradient = m.grad(at.x, at.covector)
    norm = m.norm(at.x, gradient).square() * (2 if isinstance(m, Orthogonal) else 1)
    assert torch.isclose(found, norm, rtol=1e-12)


@pytest.mark.parametrize("n", range(1, 10))
def test_each_pair_meets_once_and_rounds_are_disjoint(n):
    seen = []
    for k in range(matches(n)):
        i, j = match(n, k, None, torch.device("cpu"))
        assert len(set(i.tolist() + j.tolist())) == 2 * len(i) == n // 2 * 2
        seen += [tuple(sorted(pair)) for pair in zip(i.tolist(), j.tolist(), strict=True)]
    assert sorted(seen) == list(itertools.combinations(range(n), 2))


@pytest.mark.parametrize(("m", "shape"), PLACES, ids=str)
def test_directions_of_a_round_commute(m, shape):
    at, rule = place(m, shape), coordinates(m)
    w = rule.start(at)
    for k in range(rule.rounds(at.x)):
        t = 0.3 * gaussian(*rule.slopes(w, k, None).shape, seed=k)
        one_by_one = w
        for number in reversed(range(t.shape[-1])):
            only = torch.zeros_like(t)
            only[..., number] = t[..., number]
            one_by_one = rule.turn(one_by_one, k, None, only)
        torch.testing.assert_close(rule.point(rule.turn(w, k, None, t)), rule.point(one_by_one), atol=1e-13, rtol=1e-13)


@pytest.mark.parametrize(("m", "shape"), PLACES, ids=str)
def test_a_thousand_steps_stay_on_the_manifold(m, shape):
    """To rounding, which adds up like the steps' square root at most where turns are bounded."""
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-3)):
        at, rule = place(m, shape, batch=(2,)), coordinates(m)
        at = Problem(at.problem.fun, m).at(at.x.to(dtype))
        if isinstance(m, Grassmann | Stiefel | Orthogonal):
            tolerance *= 1e-2 if dtype == torch.float32 else 1
        w, count = rule.start(at), rule.rounds(at.x)
        for step in range(500 if dtype == torch.float64 else 20):
            t = 0.1 * gaussian(*rule.slopes(w, step % count, None).shape, seed=step).to(dtype)
            order = torch.randperm(rule.labels(at.x), generator=torch.Generator().manual_seed(step))
            there = rule.turn(w, step % count, order, t)
            w = rule.turn(there, step % count, order, 0.9 * -t)  # and mostly back: groups that are not compact
        x = rule.point(w)
        assert x.dtype == dtype
        scale = x.square().sum((-2, -1)) if isinstance(m, IndefiniteStiefel | SymplecticStiefel) else 1
        assert (m.residual(x) <= tolerance * scale).all()


def test_a_rotation_touches_two_rows():
    at = place(Stiefel(), (7, 3))
    i, j = (int(t[1]) for t in match(7, 2, None, torch.device("cpu")))
    changed = (along(coordinates(Stiefel()), at, 2, 1, 0.4) != at.x).any(-1)
    assert changed.nonzero().flatten().tolist() == sorted((i, j))


def generators(m, x):
    """(round, generators W of its directions), dense."""
    n = x.shape[-2]
    for k in range(matches(n)):
        pairs = match(n, k, None, torch.device("cpu"))
        for i, j in zip(*pairs, strict=True):
            w = torch.zeros(n, n, dtype=torch.float64)
            w[i, j], w[j, i] = 1, -1
            yield torch.linalg.inv(m.a) @ w * (m.a[i, i] * m.a[j, j]).abs().sqrt() if m is MIXED else w


@pytest.mark.parametrize(("m", "shape"), [(Stiefel(), (5, 2)), (MIXED, (5, 2))], ids=str)
def test_a_linearised_sweep_is_one_rotation_after_the_other_with_one_gradient(m, shape):
    at = place(m, shape)
    x, g = at.x, at.covector
    for w in generators(m, x):
        power, w = x, -0.05 * (g * (w @ x)).sum() * w
        for order in range(1, 20):  # torch.matrix_exp errs by 1e-11
            power = w @ power / order
            x = x + power
    method = CoordinateDescent("linearised", step_size=0.05)
    result = minimize(at.problem.fun, at.x, m, method, max_iterations=1)
    torch.testing.assert_close(result.history[1].value, float(at.problem.fun(x)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result.x, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", CoordinateDescent.examples(), ids=str)
def test_procrustes(method):
    a = gaussian(8, 3)
    result = minimize(lambda x: -(a * x).sum(), Stiefel().project(gaussian(8, 3, seed=5)), Stiefel(), method)
    assert abs(result.value + torch.linalg.svdvals(a).sum()) < 1e-9, result


@pytest.mark.parametrize("method", CoordinateDescent.examples(), ids=str)
def test_mean_on_the_hyperboloid(method):
    """Of the Lorentzian distance: the normalised sum of the points (Law et al. 2019)."""
    points = torch.stack([LORENTZ.random_point((4, 1), dtype=torch.float64) for _ in range(5)])
    points = points * points[:, :1].sign()
    sign, total = double(-1.0, 1.0, 1.0, 1.0)[:, None], points.sum(0)
    result = minimize(lambda x: -(sign * x * total).sum(), points[0], LORENTZ, method)
    torch.testing.assert_close(result.x, total / (-(sign * total * total).sum()).sqrt(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("variant", ["exact", "linearised"])
def test_symplectic_and_factor_reach_what_descent_reaches(variant):
    for m, shape in ((SymplecticStiefel(), (4, 2)), (PSDFixedRank(), (5, 2))):
        at = place(m, shape, seed=3)
        goal = m.represent(at.x) + 0.1 * gaussian(*m.represent(at.x).shape, seed=9)
        runs = [
            minimize(lambda x, m=m, goal=goal: (m.represent(x) - goal).square().sum(), at.x, m, method)
            for method in (CoordinateDescent(variant), "LBFGS")
        ]
        assert runs[0].success, runs[0]
        assert abs(runs[0].value - runs[1].value) < 1e-9


def test_refusals():
    x = Stiefel().project(gaussian(4, 2))
    for arguments, message in (
        ({"variant": "full"}, "variant: unknown 'full', expected one of exact, linearised"),
        ({"selection": "greedy"}, "selection: unknown 'greedy'"),
        ({"step_size": 0.0}, "step_size: got 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            CoordinateDescent(**arguments)
    with pytest.raises(TypeError, match=r"line_search: got Wolfe, expected Armijo"):
        CoordinateDescent(line_search=Wolfe())
    dense = IndefiniteStiefel(double(1.0, -1.0, 2.0).diag() + 0.1, (1,))
    for m, point, message in (
        (Sphere(), double(1.0, 0.0), "knows no coordinate directions of Sphere"),
        (Stiefel(), x.to(torch.complex128), "works on real points"),
        (SPD("bures-wasserstein"), torch.eye(2), "affine-invariant"),
        (dense, dense.random_point((3, 1), dtype=torch.float64), "must be diagonal"),
    ):
        with pytest.raises(ValueError, match=message):
            minimize(lambda x: x.abs().sum(), point, m, "CoordinateDescent")


def test_a_step_size_that_leads_nowhere_ends_the_run():
    def only_near(x):
        return torch.where(x.norm() < 2, x.square().sum(), torch.nan)

    result = minimize(only_near, torch.ones(2, 1), method=CoordinateDescent(step_size=100.0))
    assert "step_size = 100 leads where the function is not finite" in result.reason
    assert torch.equal(result.x, torch.ones(2, 1))
