"""Quadratic constraints and fixed-rank positive semidefinite matrices against pymanopt, geomstats and known cases.

Known faults of the peers: geomstats' RankKPSDMatrices has the dimension k n - k (k + 1) / 2, where k (k - 1) / 2
conditions fix the factor: `dim` is compared with the other peer. No peer has the symplectic or the indefinite Stiefel
manifold; for A = I the second is the Stiefel manifold with the Euclidean metric, which has closed forms.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from steepest import IndefiniteStiefel, PSDFixedRank, Stiefel

pymanopt = pytest.importorskip("pymanopt")
if not hasattr(np, "trapz"):  # geomstats 2.8.0 asks for a name that numpy 2.4 has dropped
    np.trapz = np.trapezoid
pytest.importorskip("geomstats")

from geomstats.geometry.rank_k_psd_matrices import PSDBuresWassersteinMetric, RankKPSDMatrices  # noqa: E402
from geomstats.geometry.spd_matrices import SPDBuresWassersteinMetric, SPDMatrices  # noqa: E402
from pymanopt.manifolds import PSDFixedRank as Peer  # noqa: E402
from pymanopt.manifolds import PSDFixedRankComplex as ComplexPeer  # noqa: E402

D, C = torch.float64, torch.complex128
M = PSDFixedRank()
CLOSE = {"rtol": 1e-11, "atol": 1e-12}  # some hundred operations on well-conditioned entries near one


def randn(*shape, seed=0, dtype=D):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def point(m, *shape, seed=0, dtype=D):
    return m.random_point(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("dtype", "peer"), [(D, Peer), (C, ComplexPeer)])
def test_the_quotient_is_pymanopts(dtype, peer):
    other = peer(6, 3)
    x, y = point(M, 6, 3, dtype=dtype), point(M, 6, 3, seed=1, dtype=dtype)
    g, v = randn(6, 3, seed=2, dtype=dtype), M.push(x, randn(6, 3, seed=3, dtype=dtype))
    a, b, c, w = (t.numpy() for t in (x, y, g, v))
    pairs = {
        "push": (M.push(x, g), other.projection(a, c)),
        "hessian": (M.hessian(x, g, g, v), other.euclidean_to_riemannian_hessian(a, c, c, w)),
        "inner": (M.inner(x, v, M.push(x, g)), other.inner_product(a, w, other.projection(a, c))),
        "exp": (M.exp(x, v), other.exp(a, w)),
        "log": (M.log(x, y), other.log(a, b)),
        "dist": (M.dist(x, y), other.dist(a, b)),
        "dim": (M.dim((6, 3), "complex" if dtype == C else "real"), other.dim),
    }
    for name, (ours, theirs) in pairs.items():
        torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(theirs), **CLOSE, msg=name)


def test_the_distance_is_geomstats_of_rank_k():
    space = RankKPSDMatrices(4, 2, equip=False)
    space.equip_with_metric(PSDBuresWassersteinMetric)
    x, y = point(M, 4, 2), point(M, 4, 2, seed=1)
    theirs = space.metric.squared_dist(M.represent(x).numpy(), M.represent(y).numpy())
    assert M.dist(x, y).item() ** 2 == pytest.approx(float(theirs), rel=1e-8)  # through a rank decided by a threshold


def test_full_rank_is_the_bures_wasserstein_geometry_of_positive_definite_matrices():
    """The squared distance tr X + tr Y - 2 tr (X^(1/2) Y X^(1/2))^(1/2) of Bhatia, Jain and Lim 2019; and geomstats."""
    x, y = point(M, 4, 4), point(M, 4, 4, seed=1)
    v = M.push(x, 0.3 * randn(4, 4, seed=2))
    a, b = M.represent(x), M.represent(y)
    e, u = torch.linalg.eigh(a)
    root = (u * e.sqrt()) @ u.mT
    fidelity = torch.linalg.eigvalsh(root @ b @ root).sqrt().sum()
    torch.testing.assert_close(M.dist(x, y) ** 2, a.trace() + b.trace() - 2 * fidelity, **CLOSE)
    space = SPDMatrices(4, equip=False)
    space.equip_with_metric(SPDBuresWassersteinMetric)
    tangent = (x @ v.mT + v @ x.mT).numpy()
    torch.testing.assert_close(M.represent(M.exp(x, v)), torch.as_tensor(space.metric.exp(tangent, a.numpy())), **CLOSE)
    assert M.dist(x, y).item() ** 2 == pytest.approx(float(space.metric.squared_dist(a.numpy(), b.numpy())), rel=1e-11)
    length = float(space.metric.squared_norm(tangent, a.numpy()))
    assert M.norm(x, v).item() ** 2 == pytest.approx(length, rel=1e-10)


def test_the_identity_gives_the_stiefel_manifold():
    m, stiefel = IndefiniteStiefel(torch.eye(5, dtype=D), (1, 1)), Stiefel("euclidean")
    x, g, gv = point(stiefel, 5, 2), randn(5, 2, seed=1), randn(5, 2, seed=2)
    v = m.push(x, 0.5 * randn(5, 2, seed=3))
    torch.testing.assert_close(m.grad(x, g), stiefel.grad(x, g), **CLOSE)
    torch.testing.assert_close(m.inner(x, v, m.grad(x, g)), stiefel.inner(x, v, stiefel.grad(x, g)), **CLOSE)
    torch.testing.assert_close(m.hessian(x, g, gv, v), stiefel.hessian(x, g, gv, v), **CLOSE)
    torch.testing.assert_close(m.exp(x, v), stiefel.exp(x, v), rtol=0, atol=1e-11)  # integrated, to 1000 eps
    assert m.dim((5, 2)) == stiefel.dim((5, 2))


def test_a_definite_form_is_the_stiefel_manifold_seen_through_its_root():
    """X^T B X = I for X = B^(-1/2) Q: `project` of a matrix is the one that Q's polar factor gives."""
    root = randn(5, 5)
    root = root @ root.mT / 5 + torch.eye(5, dtype=D)
    m = IndefiniteStiefel(root @ root, (1, 1))
    z = torch.linalg.solve(root, point(Stiefel(), 5, 2) + 0.1 * randn(5, 2, seed=1))
    torch.testing.assert_close(m.project(z), torch.linalg.solve(root, Stiefel().project(root @ z)), **CLOSE)
