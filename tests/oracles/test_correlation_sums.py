"""Correlation matrices, matrices with given sums and couplings, beside geomstats, geoopt and plain formulas."""

import numpy as np
import pytest
import torch

np.trapz = np.trapezoid  # geomstats 2.8 still imports the old name

import geoopt  # noqa: E402
from geomstats.geometry.full_rank_correlation_matrices import (  # noqa: E402
    FullRankCorrelationMatrices,
    LogEuclideanCholeskyMetric,
)

from steepest import Adam, Correlation, DoublyStochastic, SPDCoupling, SymmetricDoublyStochastic  # noqa: E402
from steepest.testing.manifold import Case  # noqa: E402

CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # round-off of two different routes in float64


def two_points(m, shape):
    case = Case(m, shape)
    return case.point(), case.another()


def test_log_euclidean_cholesky_is_geomstats():
    m = Correlation()
    x, y = two_points(m, (4, 4))
    space = FullRankCorrelationMatrices(4, equip=False)
    space.equip_with_metric(LogEuclideanCholeskyMetric)
    v = m.log(x, y)
    torch.testing.assert_close(v, torch.as_tensor(space.metric.log(y.numpy(), x.numpy())), **CLOSE)
    torch.testing.assert_close(m.exp(x, v / 2), torch.as_tensor(space.metric.exp(v.numpy() / 2, x.numpy())), **CLOSE)
    torch.testing.assert_close(m.dist(x, y), torch.as_tensor(space.metric.dist(x.numpy(), y.numpy())), **CLOSE)


def test_quotient_affine_exp_and_inner_are_geomstats():
    m = Correlation("quotient-affine")
    x, y = two_points(m, (4, 4))
    space = FullRankCorrelationMatrices(4)  # the quotient-affine metric is its own choice
    v, u = m.log(x, y), Case(m, (4, 4)).tangent(x)
    torch.testing.assert_close(m.exp(x, v), torch.as_tensor(space.metric.exp(v.numpy(), x.numpy())), **CLOSE)
    inner = space.metric.inner_product(u.numpy(), v.numpy(), x.numpy())
    torch.testing.assert_close(m.inner(x, u, v), torch.as_tensor(inner), **CLOSE)


def test_quotient_affine_distance_is_the_least_over_all_scalings():
    m = Correlation("quotient-affine")
    x, y = two_points(m, (3, 3))
    z = torch.zeros(3, dtype=torch.float64, requires_grad=True)

    def squared():
        d = z.exp()
        w = torch.linalg.eigvals(torch.linalg.solve(x, d[:, None] * y * d)).real
        return w.log().square().sum()

    optimizer = torch.optim.LBFGS([z], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = squared()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(m.dist(x, y) ** 2, squared().detach(), rtol=1e-8, atol=1e-8)


def test_quotient_affine_does_not_see_the_order_of_variables():
    m = Correlation("quotient-affine")
    x, y = two_points(m, (4, 4))
    p = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(m.dist(x[p][:, p], y[p][:, p]), m.dist(x, y), **CLOSE)


def test_random_correlations_are_uniform():
    """An entry of a uniform correlation matrix is Beta(n/2, n/2) on [-1, 1], of variance 1 / (n + 1)."""
    x = Correlation().random_point((20_000, 4, 4), generator=torch.Generator().manual_seed(0))
    for i, j in ((1, 0), (3, 1), (3, 2)):
        entry = x[:, i, j]
        assert abs(entry.mean().item()) < 4 * (0.2 / 20_000) ** 0.5  # four standard errors
        assert abs(entry.var().item() - 0.2) < 4 * 0.2 * (2 / 20_000) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("metric", "twice"), [("log-euclidean-cholesky", True), ("quotient-affine", True)])
def test_correlation_derivatives(metric, twice):
    m = Correlation(metric)
    x0, y0 = two_points(m, (3, 3))
    shape = m.pull(x0, x0).shape

    def at(p, h):
        return m.retract(p, m.push(p, h))

    free = [torch.zeros(shape, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def check(function):
        assert torch.autograd.gradcheck(function, free, fast_mode=True)
        if twice:
            assert torch.autograd.gradgradcheck(function, free, fast_mode=True)

    for target in (y0, x0):  # distinct and coincident points
        check(lambda h, k: m.log(at(x0, h), at(target, k)))  # noqa: B023
    check(lambda h, k: m.exp(at(x0, h), m.push(at(x0, h), k)))
    check(lambda h, k: m.dist(at(x0, h), at(y0, k)))
    check(lambda h, k: m.mean(torch.stack([at(x0, h), at(y0, k)])))


def test_fisher_gradient_is_that_of_geoopt():
    m, peer = DoublyStochastic(), geoopt.BirkhoffPolytope()
    x = m.random_point((4, 4), dtype=torch.float64)
    g = torch.randn(4, 4, dtype=torch.float64)
    # its metric is 1/n of ours at each point, as its inner product is a mean
    torch.testing.assert_close(m.grad(x, g), peer.egrad2rgrad(x, g), rtol=1e-5, atol=1e-5)  # it solves by iterations


@pytest.mark.parametrize("manifold", [DoublyStochastic(), SymmetricDoublyStochastic()], ids=str)
def test_sums_derivatives(manifold):
    m = manifold
    x0 = m.random_point((3, 3), dtype=torch.float64)
    zero = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    retract = lambda h: m.retract(x0, m.push(x0, h))  # noqa: E731
    assert torch.autograd.gradcheck(retract, (zero,), fast_mode=True)
    assert torch.autograd.gradgradcheck(retract, (zero,), fast_mode=True)


@pytest.mark.slow
def test_fisher_geodesics_of_one_free_entry_are_great_circles():
    """[[a, 1 - a], [1 - a, a]]: the metric is da^2 (2 / a + 2 / (1 - a)), so sqrt a = sin(t / sqrt 8) is unit speed."""
    m = DoublyStochastic()
    a, b = (torch.tensor([[t, 1 - t], [1 - t, t]], dtype=torch.float64) for t in (0.3, 0.6))
    length = 8**0.5 * abs(np.arcsin(0.3**0.5) - np.arcsin(0.6**0.5))
    assert abs(m.dist(a, b).item() - length) < 1e-9


def test_extreme_sums_are_met():
    """Entries over twelve orders of magnitude; Sinkhorn alone would need thousands of sweeps."""
    x = torch.logspace(-12, 0, 36, dtype=torch.float64).reshape(6, 6)
    assert DoublyStochastic().residual(DoublyStochastic().project(x)) < 1e-10


def test_transport_plan_between_histograms():
    """Minimising <C, X> + entropy over plans gives Sinkhorn's kernel scaled to the marginals."""
    p, q = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), torch.tensor([0.4, 0.6], dtype=torch.float64)
    cost = torch.tensor([[0.0, 1.0], [0.5, 0.3], [1.0, 0.2]], dtype=torch.float64)
    m = DoublyStochastic(p, q)
    x = torch.nn.Parameter(m.random_point((3, 2), dtype=torch.float64))
    group = {"params": [x], "param_names": ["plan"], "geometry": m, "role": "point"}
    optimizer = Adam([group], lr=0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for _ in range(400):
        optimizer.zero_grad()
        ((cost * x).sum() + (x * x.log()).sum()).backward()
        optimizer.step()
        scheduler.step()
    k = torch.exp(-cost)
    for _ in range(200):
        k = k * (p / k.sum(1))[:, None]
        k = k * (q / k.sum(0))
    torch.testing.assert_close(x.detach(), k, rtol=1e-4, atol=1e-5)  # Adam's last steps


def test_couplings_of_numbers_are_couplings_of_histograms():
    p, q = [0.4, 0.6], [0.5, 0.3, 0.2]
    blocks = SPDCoupling([[[t]] for t in p], [[[t]] for t in q])
    x = blocks.random_point((2, 3, 1, 1), dtype=torch.float64)
    plain = DoublyStochastic(p, q)
    plain.check_point(x[..., 0, 0])
    # the affine-invariant metric U^2 / X^2 of numbers: the gradient solves a weighted least-squares problem
    g = torch.randn(2, 3, 1, 1, dtype=torch.float64)
    w = x[..., 0, 0].square().flatten()
    sums = torch.cat([torch.kron(torch.eye(2), torch.ones(3)), torch.kron(torch.ones(2), torch.eye(3))]).double()
    full = torch.diag(w) - torch.diag(w) @ sums.T @ torch.linalg.pinv(sums @ torch.diag(w) @ sums.T) @ sums * w
    torch.testing.assert_close(blocks.grad(x, g).flatten(), full @ g.flatten(), **CLOSE)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (([0.5, 0.5], [0.5, 0.6]), "columns"),
        (([0.5, -0.5], None), "rows"),
        (([[0.5, 0.5]], None), "rows"),
        (("ones", None), "rows"),
    ],
)
def test_sums_are_checked(arguments, word):
    with pytest.raises((ValueError, TypeError), match=word):
        DoublyStochastic(*arguments)


@pytest.mark.parametrize(
    ("rows", "columns", "word"),
    [
        ([[[1.0]]], [[[2.0]]], "columns"),
        ([[[-1.0]]], [[[-1.0]]], "rows"),
        ([[1.0]], [[[1.0]]], "rows"),
    ],
)
def test_marginals_are_checked(rows, columns, word):
    with pytest.raises(ValueError, match=word):
        SPDCoupling(rows, columns)
