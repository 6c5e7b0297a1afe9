"""Stiefel against geomstats, pymanopt and geoopt.

geomstats knows the canonical metric, with a logarithm that is iterated to about 1e-8; pymanopt the metric of the
embedding on stacks of matrices; geoopt both. What they get wrong is told in `test_manifold_peers.py`.
"""

import math

import numpy as np
import pytest
import torch

from steepest import GeneralizedStiefel, Stiefel

if not hasattr(np, "trapz"):  # geomstats 2.8.0 asks for a name that numpy 2.4 has dropped
    np.trapz = np.trapezoid
geoopt = pytest.importorskip("geoopt")
pymanopt = pytest.importorskip("pymanopt")
pytest.importorskip("geomstats")

from geomstats.geometry.stiefel import Stiefel as GeomstatsStiefel  # noqa: E402

CLOSE = {"rtol": 1e-10, "atol": 1e-11}  # a few dozen operations in each of the libraries
SHAPES = [(6, 3), (20, 4), (5, 1)]


def tensor(a):
    return torch.from_numpy(np.ascontiguousarray(a))


def place(shape, length, m):
    """A point and a tangent vector of that length."""
    generator = torch.Generator().manual_seed(shape[0])
    x = m.random_point(shape, dtype=torch.float64, generator=generator)
    v = m.random_tangent(x, generator=generator)
    return x, v * length / m.norm(x, v)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("length", [1e-3, 1.0, 0.5 * math.pi])
def test_canonical_metric_agrees_with_geomstats(shape, length):
    m, peer = Stiefel("canonical"), GeomstatsStiefel(*shape).metric
    x, v = place(shape, length, m)
    y = m.exp(x, v)
    a, b = x.numpy(), v.numpy()
    torch.testing.assert_close(y, tensor(peer.exp(b, a)), **CLOSE)
    torch.testing.assert_close(m.inner(x, v, v).item(), float(peer.inner_product(b, b, a)), **CLOSE)
    if shape[1] > 1:  # for a single column its logarithm takes the square root of a number below zero
        theirs = {"rtol": 0, "atol": 1e-6}  # to which its iteration is accurate
        torch.testing.assert_close(m.log(x, y), tensor(peer.log(y.numpy(), a)), **theirs)
        torch.testing.assert_close(m.dist(x, y).item(), float(peer.dist(a, y.numpy())), **theirs)


@pytest.mark.parametrize("shape", SHAPES)
def test_embedded_metric_agrees_with_pymanopt(shape):
    m, peer = Stiefel(), pymanopt.manifolds.Stiefel(*shape)
    x, v = place(shape, 1.0, m)
    g, gv = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    a, b, c, d = (t.numpy() for t in (x, v, g, gv))
    torch.testing.assert_close(m.exp(x, v), tensor(peer.exp(a, b)), **CLOSE)
    torch.testing.assert_close(m.grad(x, g), tensor(peer.euclidean_to_riemannian_gradient(a, c)), **CLOSE)
    hessian = tensor(peer.euclidean_to_riemannian_hessian(a, c, d, b))
    torch.testing.assert_close(m.hessian(x, g, gv, v), hessian, **CLOSE)
    for retraction in ("qr", "polar"):
        theirs = tensor(pymanopt.manifolds.Stiefel(*shape, retraction=retraction).retraction(a, b))
        torch.testing.assert_close(Stiefel("euclidean", retraction).retract(x, v), theirs, **CLOSE)


@pytest.mark.parametrize("shape", [(6, 3), (20, 4)])
def test_embedded_metric_agrees_with_geoopt(shape):
    m, peer = Stiefel(), geoopt.EuclideanStiefel()
    x, v = place(shape, 1.0, m)
    g = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(m.exp(x, v), peer.expmap(x, v), **CLOSE)
    torch.testing.assert_close(m.grad(x, g), peer.egrad2rgrad(x, g), **CLOSE)


def test_cayley_agrees_with_geoopt():
    """geoopt's retraction of the canonical metric is the Cayley transform, on horizontal steps: it moves twice as far
    within the span of X, where it takes V X^T - X V^T for the skew matrix that sends X to V."""
    m = Stiefel("canonical", "cayley")
    x, v = place((6, 3), 1.0, m)
    v = v - x @ (x.T @ v)
    torch.testing.assert_close(m.retract(x, v), geoopt.CanonicalStiefel().retr(x, v), **CLOSE)


def test_generalized_hessian_agrees_with_pymanopt_through_whitening():
    """f(X) = g(C^T X): the Hessian of f on the generalised manifold is that of g on Stiefel."""
    shape, b = (5, 2), torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    b = b @ b.T + torch.eye(5)
    m, c = GeneralizedStiefel(b), torch.linalg.cholesky(b)
    y, w = place(shape, 1.0, Stiefel())
    g, gw = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    x, v = (torch.linalg.solve_triangular(c.T, t, upper=True) for t in (y, w))
    peer = pymanopt.manifolds.Stiefel(*shape)
    theirs = tensor(peer.euclidean_to_riemannian_hessian(*(t.numpy() for t in (y, g, gw, w))))
    torch.testing.assert_close(c.T @ m.hessian(x, c @ g, c @ gw, v), theirs, **CLOSE)
