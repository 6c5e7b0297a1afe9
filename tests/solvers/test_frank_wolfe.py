"""Frank and Wolfe's method: its oracles against general optimisers, its rate, and that it never leaves its set."""

import pytest
import torch

from steepest.manifolds import SPD, Euclidean, FixedRank, Grassmann, Sphere, Stiefel
from steepest.solvers import (
    Armijo,
    FrankWolfe,
    GeodesicBall,
    Problem,
    SPDInterval,
    Wolfe,
    ZerothOrderFrankWolfe,
    minimize,
)

DOUBLE = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def spd(n, *batch, seed=0):
    return SPD().random_point((*batch, n, n), dtype=DOUBLE, generator=generator(seed))


def randn(*shape, seed=0):
    return torch.randn(shape, dtype=DOUBLE, generator=generator(seed))


def interval(points):
    """In which the mean lies: from the harmonic to the arithmetic mean."""
    return points.inverse().mean(0).inverse(), points.mean(0)


def karcher(points):
    return lambda x: SPD().dist(x.expand_as(points), points).square().sum() / len(points)


# Oracles. -------------------------------------------------------------------------------------------------------------


def towards(region, x, s):
    at = Problem(lambda x: x.sum(), SPD()).at(x)
    return at.unravel(region.towards(at, at.ravel(s), [])), at.frame


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_definite_covector_leads_to_an_end_of_the_interval(sign):
    x, gap, s = spd(4), spd(4, seed=1), sign * spd(4, seed=2)
    low, high = x - 0.05 * torch.eye(4), x + gap
    z, k = towards(SPDInterval(low, high), x, s)
    end = torch.linalg.matrix_exp(z)
    torch.testing.assert_close(k @ end @ k.mT, low if sign > 0 else high)


@pytest.mark.parametrize("seed", range(4))
def test_no_point_of_the_interval_is_better(seed):
    """Points K are L + P C P with 0 <= C <= I: gradient descent on C = U diag(sigmoid) U^T from several starts."""
    n = 3
    x, s = spd(n, seed=seed), randn(n, n, seed=seed + 10)
    s = s + s.mT
    low, high = 0.3 * x, x + spd(n, seed=seed + 20)
    z, k = towards(SPDInterval(low, high, polish=50), x, s)
    ours = (s * z).sum()
    a, b = (torch.linalg.solve(k, torch.linalg.solve(k, t).mT) for t in (low, high))
    w, q = torch.linalg.eigh(b - a)
    root = (q * w.sqrt()) @ q.mT

    def value(c):
        u, t = torch.linalg.qr(c[:, :n])[0], c[:, n].sigmoid()
        w, v = torch.linalg.eigh(a + root @ (u * t) @ u.mT @ root)
        return (v.mT @ s @ v).diagonal() @ w.log()

    lowest = min(minimize(value, randn(n, n + 1, seed=i), max_iterations=150).value for i in range(2))
    assert ours <= lowest + 1e-6  # of its last steps, which are shorter than 1e-9 of the value
    ends = (
        torch.linalg.eigvalsh(torch.linalg.matrix_exp(z) - a).min(),
        torch.linalg.eigvalsh(b - torch.linalg.matrix_exp(z)).min(),
    )
    assert min(ends) > -1e-12
    paper = (s * towards(SPDInterval(low, high, polish=0), x, s)[0]).sum()
    assert ours <= paper + 1e-12


def test_the_paper_s_formula_is_not_always_best():
    worst = 1.0
    for seed in range(4):
        x, s = torch.eye(5, dtype=DOUBLE), randn(5, 5, seed=seed)
        low = spd(5, seed=seed + 10)
        region = [SPDInterval(low, low + 3 * spd(5, seed=seed + 20), polish=k) for k in (0, 10)]
        paper, ours = ((s * towards(r, x, s + s.mT)[0]).sum().item() for r in region)
        worst = min(worst, paper / ours)
    assert worst < 0.9


@pytest.mark.parametrize(
    ("manifold", "shape"), [(Euclidean(), (3, 2)), (Sphere(), (4,)), (Grassmann(), (4, 2)), (SPD(), (2, 2))]
)
def test_no_point_of_the_ball_is_better(manifold, shape):
    centre = manifold.random_point(shape, dtype=DOUBLE, generator=generator(1))
    x = manifold.exp(centre, 0.3 * unit(manifold, centre, generator(2)))
    at = Problem(lambda x: x.sum(), manifold).at(x)
    g = at.random(generator(3))
    region = GeodesicBall(0.7, centre, refine=30)
    z = region.towards(at, g, [])
    there = at.problem.at(manifold.exp(x, at.push(z)))
    assert abs(region.excess(manifold, there.x, [])) < 1e-9
    tries = [manifold.exp(centre, 0.7 * unit(manifold, centre, generator(10 + i))) for i in range(300)]
    values = [float(at.ravel(manifold.coords(x, manifold.log(x, y))) @ g) for y in tries]
    assert float(z @ g) < min(values)


def unit(manifold, x, generator):
    v = manifold.random_tangent(x, generator=generator)
    return v / manifold.norm(x, v)


# The method. ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        lambda region: FrankWolfe(region, Armijo(refine=True)),
        lambda region: FrankWolfe(region),
        lambda region: ZerothOrderFrankWolfe(region, Armijo(refine=True)),
        lambda region: ZerothOrderFrankWolfe(region, directions=3),
    ],
    ids=["line search", "open loop", "zeroth order", "zeroth order, few directions, open loop"],
)
def test_the_mean_of_positive_definite_matrices(method):
    """And no iterate leaves the interval."""
    points = spd(3, 5, seed=4)
    low, high = interval(points)
    region, worst = SPDInterval(low, high, polish=3), []

    def watch(record, x):
        worst.append(region.excess(SPD(), x, []).item())

    result = minimize(karcher(points), high, SPD(), method(region), max_iterations=50, callback=watch)
    expected = SPD().mean(points)
    assert SPD().dist(result.x, expected) < 0.05  # errors like 1 / k; its points are up to 1.5 from each other
    assert max(worst) < 1e-12
    assert result.value < karcher(points)(high) - 10 * (result.value - karcher(points)(expected))


@pytest.mark.slow
def test_the_gap_bounds_the_error_and_falls_like_one_over_k():
    """The mean lies outside, so that the optimum is on the boundary, within a face of it."""
    points = spd(2, 4, seed=1)
    k = torch.linalg.cholesky(SPD().mean(points))
    low, high = (k @ torch.diag(torch.tensor(d, dtype=DOUBLE)) @ k.mT for d in ([0.1, 0.1], [0.6, 3.0]))
    region, x0 = SPDInterval(low, high, polish=2), 2 * low
    run = minimize(karcher(points), x0, SPD(), FrankWolfe(region, gap=0.0), max_iterations=330, tolerance=0)
    gaps = [r.note["gap"] for r in run.history[1:]]
    errors = [r.value - run.value + min(gaps) for r in run.history]  # at least the true ones
    assert all(e - min(gaps) <= g + 1e-12 for e, g in zip(errors, gaps, strict=False))
    assert max(errors[300:]) < 0.15 * max(errors[30:60])  # a tenth, were it 1 / k to the dot
    assert min(gaps[:300]) < 0.1 * min(gaps[:30])


def test_a_large_curved_ball_has_a_way_down_from_its_inside():
    """Where the iteration finds none: a step of zero would be taken for the optimum."""
    random = generator()
    for _ in range(8):
        centre = SPD().random_point((2, 2), dtype=DOUBLE, generator=random)
        v = SPD().random_tangent(centre, generator=random)
        x = SPD().exp(centre, 5.8 / SPD().norm(centre, v) * v)
        region, at = GeodesicBall(6.0, centre), Problem(lambda x: x.sum(), SPD()).at(x)
        g = at.random(random)
        z = region.towards(at, g, [])
        assert z @ g <= -0.19 * g.norm()  # the ball of radius 0.2 around x lies inside
        assert region.excess(SPD(), SPD().exp(x, at.push(z)), []) < 1e-6


def test_the_best_point_of_an_open_loop_is_not_lost():
    """Steps of 2 / (k + 2) go up now and then."""
    method = FrankWolfe(GeodesicBall(1.0))
    goal = torch.tensor([[0.3, 0.1, 0.0]], dtype=DOUBLE)
    result = minimize(lambda x: (x - goal).square().sum(), 0 * goal, method=method, max_iterations=6)
    values = [r.value for r in result.history]
    assert values[-1] > min(values)
    assert result.value == min(values)


def test_a_minimum_on_the_boundary_is_success():
    points = spd(2, 4, seed=1)
    low, _ = interval(points)
    region = SPDInterval(0.1 * low, 0.5 * low)
    method = FrankWolfe(region, Armijo(), gap=1e-5)
    result = minimize(lambda x: -x.logdet(), 0.2 * low, SPD(), method)
    torch.testing.assert_close(result.x, 0.5 * low)
    assert result.success
    assert "gap" in result.reason
    assert result.gradient_norm > 1


def test_batches_are_products():
    points = torch.stack([spd(2, 3, seed=1), spd(2, 3, seed=2)], 1)
    region = SPDInterval(*interval(points))
    result = minimize(karcher(points), points.mean(0), SPD(), FrankWolfe(region, Armijo()), max_iterations=100)
    assert SPD().dist(result.x, SPD().mean(points)).max() < 0.01


@pytest.mark.slow
def test_few_directions_are_averaged():
    """Noise of the estimate goes to zero, so that the open loop converges."""
    a = torch.linspace(1, 3, 12, dtype=DOUBLE)
    cost = lambda x: (a * (x - 1).square()).sum()  # noqa: E731
    region = GeodesicBall(2.0, torch.zeros(12, dtype=DOUBLE))
    method = ZerothOrderFrankWolfe(region, directions=4)
    result = minimize(cost, torch.zeros(12, dtype=DOUBLE), Euclidean(1), method, max_iterations=250)
    best = minimize(cost, torch.zeros(12, dtype=DOUBLE), Euclidean(1), FrankWolfe(region), max_iterations=400).value
    assert result.value - best < 0.1 * (cost(torch.zeros(12)) - best)  # measured: 0.05
    assert result.evaluations.gradients == 0


def test_errors():
    eye, ball = torch.eye(2, dtype=DOUBLE), GeodesicBall(1.0)
    with pytest.raises(ValueError, match="upper"):
        SPDInterval(eye, 0.5 * eye)
    with pytest.raises(ValueError, match="lower"):
        SPDInterval(-eye, eye)
    with pytest.raises(ValueError, match="lower"):
        SPDInterval(eye[0], eye)
    with pytest.raises(ValueError, match="radius"):
        GeodesicBall(0.0)
    with pytest.raises(TypeError, match="line_search"):
        FrankWolfe(ball, Wolfe())
    with pytest.raises(ValueError, match="directions"):
        ZerothOrderFrankWolfe(ball, directions=0)
    region = SPDInterval(eye, 2 * eye)
    cost = lambda x: x.square().sum()  # noqa: E731
    with pytest.raises(ValueError, match="not for Stiefel"):
        minimize(cost, eye, Stiefel(), FrankWolfe(region))
    with pytest.raises(ValueError, match="not between"):
        minimize(cost, 3 * eye, SPD(), FrankWolfe(region))
    with pytest.raises(ValueError, match="farther"):
        minimize(cost, 9 * eye, SPD(), FrankWolfe(GeodesicBall(1.0, eye)))
    with pytest.raises(ValueError, match="log"):
        minimize(cost, FixedRank().random_point(((3, 1), (1, 3))), FixedRank(), FrankWolfe(ball))
    with pytest.raises(ValueError, match="needs region"):
        minimize(cost, eye, SPD(), "FrankWolfe")
