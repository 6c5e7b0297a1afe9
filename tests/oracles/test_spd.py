"""The metrics of SPD against geomstats and pyRiemann, and against equations written out by the inverse, by Kronecker
products and by Schur square roots.

Everything is float64 on matrices of condition below 100; `CLOSE` is the rounding of a few hundred operations. Peers
that compare by traces lose half of the digits of a distance near zero, so distances are between random points.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from steepest import SPD
from steepest.linalg import sym
from steepest.manifolds import BuresWasserstein, PowerDeformed

if not hasattr(np, "trapz"):  # geomstats 2.8.0 asks for a name that numpy 2.4 has dropped
    np.trapz = np.trapezoid

CLOSE = {"rtol": 1e-10, "atol": 1e-11}


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def point(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return SPD().random_point(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def ask(function: Callable[..., Any], *arguments: Tensor) -> Tensor:
    return torch.as_tensor(np.asarray(function(*(a.numpy() for a in arguments))))


# geomstats. -----------------------------------------------------------------------------------------------------------


def geomstats_metric(name: str) -> tuple[Any, Any]:
    """Its metric and ours."""
    spd = pytest.importorskip("geomstats.geometry.spd_matrices")
    space = spd.SPDMatrices(3, equip=False)
    if name == "bures-wasserstein":
        return spd.SPDBuresWassersteinMetric(space), SPD(name)
    if name == "log-euclidean":
        return spd.SPDLogEuclideanMetric(space), SPD(name)
    if name == "affine-invariant":
        return spd.SPDAffineMetric(space), SPD()
    # of power p: the affine-invariant metric of X^p, divided by p^2
    base = pytest.importorskip("geomstats.geometry.scalar_product_metric")
    image = spd.SPDMatrices(3, equip=False)
    image.equip_with_metric(spd.SPDAffineMetric)
    image.metric = base.ScalarProductMetric(image, 1 / 0.5**2)
    return spd.SPDPowerMetric(space, image), SPD(PowerDeformed("affine-invariant", 0.5))


@pytest.mark.parametrize("operation", ["inner", "exp", "log", "dist"])
@pytest.mark.parametrize("name", ["affine-invariant", "log-euclidean", "bures-wasserstein", "power"])
def test_agrees_with_geomstats(name: str, operation: str) -> None:
    metric, ours = geomstats_metric(name)
    x, y, u, v = point(3, 3), point(3, 3, seed=1), sym(randn(3, 3, seed=2)), 0.1 * sym(randn(3, 3, seed=3))
    theirs: dict[str, tuple[tuple[Tensor, ...], Callable[..., Any]]] = {
        "inner": ((x, u, v), lambda x, u, v: metric.inner_product(u, v, x)),
        "exp": ((x, v), lambda x, v: metric.exp(v, x)),
        "log": ((x, y), lambda x, y: metric.log(y, x)),
        "dist": ((x, y), metric.dist),
    }
    arguments, function = theirs[operation]
    # its derivative of the logarithm divides by gaps between eigenvalues: some more rounding
    torch.testing.assert_close(getattr(ours, operation)(*arguments), ask(function, *arguments), rtol=1e-9, atol=1e-10)


# pyRiemann. -----------------------------------------------------------------------------------------------------------

PYRIEMANN = {
    "affine-invariant": "riemann",
    "log-euclidean": "logeuclid",
    "log-cholesky": "logchol",
    "bures-wasserstein": "wasserstein",
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])
@pytest.mark.parametrize("name", PYRIEMANN)
def test_agrees_with_pyriemann(name: str, dtype: torch.dtype) -> None:
    """Distance, logarithm and exponential, the point halfway, the inner product where it has one."""
    geometry = pytest.importorskip("pyriemann.geometry.distance")
    tangent = pytest.importorskip("pyriemann.geometry.tangentspace")
    geodesic = pytest.importorskip("pyriemann.geometry.geodesic")
    metric, ours = PYRIEMANN[name], SPD(name)
    x, y = point(3, 3, dtype=dtype), point(3, 3, seed=1, dtype=dtype)
    torch.testing.assert_close(ours.dist(x, y), ask(lambda x, y: geometry.distance(x, y, metric), x, y), **CLOSE)
    whole = {"C12": True} if name == "affine-invariant" else {}  # else in coordinates of its own
    log = ask(lambda x, y: tangent.log_map(y, x, metric=metric, **whole), x, y)
    torch.testing.assert_close(ours.log(x, y), log, **CLOSE)
    half = ask(lambda x, y: geodesic.geodesic(x, y, 0.5, metric=metric), x, y)
    torch.testing.assert_close(ours.exp(x, ours.log(x, y) / 2), half, **CLOSE)
    if name != "bures-wasserstein":
        u, v = (sym(randn(3, 3, seed=s, dtype=dtype)) for s in (2, 3))
        inner = ask(lambda x, u, v: tangent.innerproduct(u, v, x, metric=metric), x, u, v)
        torch.testing.assert_close(ours.inner(x, u, v), inner.real, **CLOSE)
        moved = ask(lambda x, y, v: tangent.transport(v, x, y, metric=metric), x, y, v)
        torch.testing.assert_close(ours.transport(x, y, v), moved, **CLOSE)


@pytest.mark.parametrize("name", PYRIEMANN)
def test_mean_agrees_with_pyriemann(name: str) -> None:
    means = pytest.importorskip("pyriemann.geometry.mean")
    x, w = point(5, 3, 3), torch.tensor([0.1, 0.3, 0.2, 0.25, 0.15], dtype=torch.float64)
    options = {} if name in ("log-euclidean", "log-cholesky") else {"tol": 1e-12, "maxiter": 500}
    function = {
        "affine-invariant": means.mean_riemann,
        "log-euclidean": means.mean_logeuclid,
        "log-cholesky": means.mean_logchol,
        "bures-wasserstein": means.mean_wasserstein,
    }[name]
    theirs = ask(lambda x, w: function(x, sample_weight=w, **options), x, w)
    torch.testing.assert_close(SPD(name).mean(x, w), theirs, rtol=1e-9, atol=1e-10)  # iterations, theirs to 1e-12


# Equations. -----------------------------------------------------------------------------------------------------------


def test_wasserstein_distance_of_gaussians() -> None:
    """tr X + tr Y - 2 tr (X^1/2 Y X^1/2)^1/2, with Schur square roots."""
    for dtype in (torch.float64, torch.complex128):
        x, y = (point(4, 4, seed=s, dtype=dtype).numpy() for s in (0, 1))
        root = scipy.linalg.sqrtm(x)
        expected = np.trace(x + y - 2 * scipy.linalg.sqrtm(root @ y @ root)).real
        ours = SPD("bures-wasserstein").dist(torch.from_numpy(x), torch.from_numpy(y)) ** 2
        assert ours.item() == pytest.approx(expected, rel=1e-10)


def test_bures_wasserstein_mean_solves_its_equation() -> None:
    """X = sum w_i (X^1/2 Y_i X^1/2)^1/2 (Agueh and Carlier 2011)."""
    y = point(4, 3, 3)
    x = SPD("bures-wasserstein").mean(y).numpy()
    root = scipy.linalg.sqrtm(x)
    np.testing.assert_allclose(
        sum(scipy.linalg.sqrtm(root @ a @ root) for a in y.numpy()) / 4, x, rtol=1e-10, atol=1e-11
    )


def solved(x: np.ndarray, m: np.ndarray, u: np.ndarray) -> np.ndarray:
    """S with X S M + M S X = U, by Kronecker products on the columns of S."""
    system = np.kron(m.T, x) + np.kron(x.T, m)
    return np.linalg.solve(system, u.reshape(-1, order="F")).reshape(u.shape, order="F")


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])
def test_generalised_bures_wasserstein(dtype: torch.dtype) -> None:
    """Han, Mishra, Jawanpuria and Gao 2021: the metric tr(S U) / 2, exp X + U + M S X S M, the distance
    tr M^-1 X + tr M^-1 Y - 2 tr (X M^-1 Y M^-1)^1/2, and the logarithm M (M^-1 X M^-1 Y)^1/2 + its adjoint - 2 X."""
    x, y, m = (point(3, 3, seed=s, dtype=dtype) for s in range(3))
    u, v = (0.1 * sym(randn(3, 3, seed=s, dtype=dtype)) for s in (3, 4))
    ours = SPD(BuresWasserstein(m))
    a, b, c, p, q = (t.numpy() for t in (x, y, m, u, v))
    s = solved(a, c, p)
    assert ours.inner(x, u, v).item() == pytest.approx(np.trace(s @ q).real / 2, rel=1e-10)
    torch.testing.assert_close(ours.exp(x, u), torch.from_numpy(a + p + c @ s @ a @ s @ c), **CLOSE)
    w = np.linalg.inv(c)
    square = np.trace(w @ a + w @ b).real - 2 * np.trace(scipy.linalg.sqrtm(a @ w @ b @ w)).real
    assert ours.dist(x, y).item() ** 2 == pytest.approx(square, rel=1e-10)
    half = c @ scipy.linalg.sqrtm(w @ a @ w @ b)
    torch.testing.assert_close(ours.log(x, y), torch.from_numpy(half + half.conj().T - 2 * a), **CLOSE)
