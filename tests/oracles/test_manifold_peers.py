"""Manifolds against geoopt, pymanopt and geomstats, and against equations where these libraries are silent or wrong.

Everything is float64 on well-conditioned points; `CLOSE` is the rounding of a hundred operations on entries near one.
Known faults of the peers, and what stands in for them:

- geoopt's `CanonicalStiefel.expmap` is the Cayley retraction and its `proju` no projection: geomstats and the geodesic
  equation serve for the canonical exponential, its `egrad2rgrad` is right.
- `transp` of geoopt's spheres and `transport` of pymanopt's Sphere, Oblique, Grassmann and Stiefel are projections, and
  that of its SPD the identity: none of them is parallel. geomstats has the parallel ones.
- pymanopt's Grassmann.dist takes arccosines, which lose angles below 1e-8: compared on subspaces far apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from steepest import SPD, Euclidean, FixedRank, Grassmann, Manifold, Oblique, Product, Sphere, Stiefel

geoopt = pytest.importorskip("geoopt")
pymanopt = pytest.importorskip("pymanopt")
if not hasattr(np, "trapz"):  # geomstats 2.8.0 asks for a name that numpy 2.4 has dropped
    np.trapz = np.trapezoid
pytest.importorskip("geomstats")

from geomstats.geometry.grassmannian import Grassmannian  # noqa: E402
from geomstats.geometry.hypersphere import Hypersphere  # noqa: E402
from geomstats.geometry.spd_matrices import SPDAffineMetric, SPDMatrices  # noqa: E402
from geomstats.geometry.stiefel import Stiefel as GeomstatsStiefel  # noqa: E402

CLOSE = {"rtol": 1e-10, "atol": 1e-11}
Operation = Callable[..., Tensor]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def point(manifold: Manifold, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return manifold.random_point(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tangent(manifold: Manifold, x: Tensor, seed: int = 1, size: float = 1.0) -> Tensor:
    """A tangent vector of Riemannian length `size`."""
    v = manifold.grad(x, randn(*x.shape, seed=seed))
    return size * v / manifold.norm(x, v)[(...,) + (None,) * manifold.ndim]


def each(function: Callable[..., Any], ndim: int) -> Operation:
    """A function of numpy arrays, one point at a time, as a function of batches of tensors."""

    def batched(*args: Tensor) -> Tensor:
        batch = args[0].shape[: args[0].ndim - ndim]
        flat = [a.reshape(-1, *a.shape[a.ndim - ndim :]).numpy() for a in args]
        out = np.stack([np.asarray(function(*parts)) for parts in zip(*flat, strict=True)])
        return torch.from_numpy(np.array(out).reshape((*batch, *out.shape[1:])))

    return batched


def columns(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of vectors, applied to columns."""
    return lambda *args: np.stack([function(*parts) for parts in zip(*(a.T for a in args), strict=True)], -1)


def total_over_columns(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: np.linalg.norm([function(*parts) for parts in zip(*(a.T for a in args), strict=True)])


@dataclasses.dataclass
class Peer:
    """What another library says of a manifold: its operations under our names, on batches."""

    label: str
    manifold: Manifold
    shape: tuple[int, ...]
    operations: dict[str, Operation]


def _pymanopt(m: Any, ndim: int, *names: str) -> dict[str, Operation]:
    known = {
        "grad": lambda x, g: m.euclidean_to_riemannian_gradient(x, g),
        "inner": lambda x, u, v: m.inner_product(x, u, v),
        "norm": lambda x, u: m.norm(x, u),
        "retract": lambda x, v: m.retraction(x, v),
        "exp": lambda x, v: m.exp(x, v),
        "log": lambda x, y: m.log(x, y),
        "dist": lambda x, y: m.dist(x, y),
    }
    return {name: each(known[name], ndim) for name in names}


def _geoopt(m: Any, *names: str) -> dict[str, Operation]:
    known = {
        "grad": m.egrad2rgrad,
        "inner": lambda x, u, v: m.inner(x, u, v),
        "retract": m.retr,
        "exp": m.expmap,
        "log": m.logmap,
        "dist": m.dist,
        "transport": m.transp,
    }
    return {name: known[name] for name in names}


def _geomstats(metric: Any, ndim: int, *names: str) -> dict[str, Operation]:
    known = {
        "inner": lambda x, u, v: metric.inner_product(u, v, x),
        "exp": lambda x, v: metric.exp(v, x),
        "log": lambda x, y: metric.log(y, x),
        "dist": lambda x, y: metric.dist(x, y),
        "transport": lambda x, y, v: metric.parallel_transport(v, x, end_point=y),
    }
    return {name: each(known[name], ndim) for name in names}


def _transposed(operations: dict[str, Operation]) -> dict[str, Operation]:
    """geoopt's Sphere keeps unit vectors along the last axis: on the transpose its batch of rows is our Oblique."""

    def turn(name: str, f: Operation) -> Operation:
        def turned(*args: Tensor) -> Tensor:
            out = f(*(a.mT for a in args))
            if name == "dist":
                return torch.linalg.vector_norm(out, dim=-1)
            return out.sum(-1) if name == "inner" else out.mT

        return turned

    return {name: turn(name, f) for name, f in operations.items()}


def _projector(x: np.ndarray) -> np.ndarray:
    return x @ x.T


def _lift(x: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A horizontal V at X as the derivative of the projector X X^T."""
    return v @ x.T + x @ v.T


def _geomstats_grassmann(n: int, p: int) -> dict[str, Operation]:
    """Its points are projectors, and its metric is the trace of products of their derivatives: twice ours."""
    metric = Grassmannian(n, p).metric
    return {
        "inner": each(lambda x, u, v: metric.inner_product(_lift(x, u), _lift(x, v)) / 2, 2),
        "exp": each(lambda x, v: metric.exp(_lift(x, v), _projector(x)), 2),
        "log": each(lambda x, y: metric.log(_projector(y), _projector(x)) @ x, 2),
        "dist": each(lambda x, y: metric.dist(_projector(x), _projector(y)) / 2**0.5, 2),
        "transport": each(
            lambda x, y, v: metric.parallel_transport(_lift(x, v), _projector(x), end_point=_projector(y)) @ y, 2
        ),
    }


def peers() -> list[Peer]:
    sphere, spd = Hypersphere(4).metric, SPDAffineMetric(SPDMatrices(4, equip=False))
    everything = ("inner", "exp", "log", "dist", "transport")
    ball = _geomstats(sphere, 1, *everything)
    by_column = {
        name: each((total_over_columns if name == "dist" else columns)(_numpy(f)), 2)
        for name, f in ball.items()
        if name != "inner"
    }
    rows = ("grad", "inner", "retract", "exp", "log", "dist")
    return [
        Peer("geoopt sphere", Sphere(), (5,), _geoopt(geoopt.Sphere(), *rows)),
        Peer("pymanopt sphere", Sphere(), (5,), _pymanopt(pymanopt.manifolds.Sphere(5), 1, *rows, "norm")),
        Peer("geomstats sphere", Sphere(), (5,), ball),
        Peer("geoopt oblique", Oblique(), (5, 3), _transposed(_geoopt(geoopt.Sphere(), *rows))),
        Peer("pymanopt oblique", Oblique(), (5, 3), _pymanopt(pymanopt.manifolds.Oblique(5, 3), 2, *rows, "norm")),
        Peer("geomstats oblique", Oblique(), (5, 3), by_column),
        Peer(
            "geoopt stiefel", Stiefel(), (6, 3), _geoopt(geoopt.EuclideanStiefel(), "grad", "inner", "retract", "exp")
        ),
        Peer("geoopt square stiefel", Stiefel(), (4, 4), _geoopt(geoopt.EuclideanStiefel(), "grad", "retract", "exp")),
        Peer("geoopt exact stiefel", Stiefel(), (6, 3), {"exp": geoopt.EuclideanStiefelExact().retr}),
        Peer(
            "pymanopt stiefel",
            Stiefel("euclidean", "polar"),
            (6, 3),
            _pymanopt(
                pymanopt.manifolds.Stiefel(6, 3, retraction="polar"), 2, "grad", "inner", "norm", "retract", "exp"
            ),
        ),
        Peer(
            "geoopt canonical stiefel",
            Stiefel("canonical"),
            (6, 3),
            _geoopt(geoopt.CanonicalStiefel(), "grad", "inner"),
        ),
        Peer(
            "geomstats canonical stiefel",
            Stiefel("canonical"),
            (6, 3),
            {
                **_geomstats(GeomstatsStiefel(6, 3).metric, 2, "inner", "exp"),
                "retract": each(lambda x, v: GeomstatsStiefel(6, 3).metric.retraction(v, x), 2),
            },
        ),
        Peer(
            "pymanopt grassmann",
            Grassmann(),
            (6, 2),
            {
                **_pymanopt(pymanopt.manifolds.Grassmann(6, 2), 2, "grad", "inner", "norm", "log", "dist"),
                "exp": each(lambda x, v: _projector(pymanopt.manifolds.Grassmann(6, 2).exp(x, v)), 2),
            },
        ),
        Peer("geomstats grassmann", Grassmann(), (6, 2), _geomstats_grassmann(6, 2)),
        Peer("geomstats large grassmann", Grassmann(), (5, 3), _geomstats_grassmann(5, 3)),
        Peer(
            "geoopt spd",
            SPD(retraction="second_order"),
            (4, 4),
            _geoopt(geoopt.SymmetricPositiveDefinite(), *rows, "transport"),
        ),
        Peer(
            "pymanopt spd",
            SPD(retraction="second_order"),
            (4, 4),
            _pymanopt(pymanopt.manifolds.SymmetricPositiveDefinite(4), 2, *rows, "norm"),
        ),
        Peer("geomstats spd", SPD(), (4, 4), _geomstats(spd, 2, *everything)),
    ]


def _numpy(f: Operation) -> Callable[..., np.ndarray]:
    return lambda *args: f(*(torch.from_numpy(np.ascontiguousarray(a)) for a in args)).numpy()


PEERS = peers()
QUESTIONS = [pytest.param(peer, op, id=f"{peer.label}-{op}") for peer in PEERS for op in peer.operations]


@pytest.mark.parametrize("batch", [(), (2, 3)], ids=["one", "batch"])
@pytest.mark.parametrize(("peer", "operation"), QUESTIONS)
def test_agrees_with_peer(peer: Peer, operation: str, batch: tuple[int, ...]) -> None:
    manifold, ask = peer.manifold, peer.operations[operation]
    x = point(manifold, (*batch, *peer.shape))
    u, v = tangent(manifold, x, 1), tangent(manifold, x, 2, size=0.8)
    y = manifold.exp(x, v)
    arguments = {
        "grad": (x, randn(*x.shape, seed=3)),
        "inner": (x, u, v),
        "norm": (x, v),
        "retract": (x, v),
        "exp": (x, v),
        "log": (x, y),
        "dist": (x, y),
        "transport": (x, y, u),
    }[operation]
    ours, theirs = getattr(manifold, operation)(*arguments), ask(*arguments)
    if operation == "exp" and isinstance(manifold, Grassmann):
        ours = manifold.represent(ours)  # the peer's basis is another one, or its point a projector
    torch.testing.assert_close(ours, theirs.detach(), **CLOSE)


# Equations that any geometry obeys. -----------------------------------------------------------------------------------

CURVED = [
    pytest.param(m, shape, id=f"{m}-{'x'.join(map(str, shape))}")
    for m, shape in [
        (Sphere(), (5,)),
        (Oblique(), (5, 3)),
        (Grassmann(), (6, 2)),
        (Grassmann(), (5, 3)),
        (SPD(), (4, 4)),
        (SPD(retraction="second_order"), (4, 4)),
    ]
]
ALL = [
    *CURVED,
    *(
        pytest.param(m, shape, id=f"{m}-{'x'.join(map(str, shape))}")
        for m, shape in [
            (Stiefel(), (6, 3)),
            (Stiefel(), (4, 4)),
            (Stiefel("euclidean", "polar"), (6, 3)),
            (Stiefel("canonical"), (6, 3)),
            (Stiefel("canonical", "polar"), (6, 3)),
            (Euclidean(), (4, 3)),
        ]
    ),
]


@pytest.mark.parametrize(("manifold", "shape"), CURVED)
def test_log_is_shortest(manifold: Any, shape: tuple[int, ...]) -> None:
    x = point(manifold, (7, *shape))
    v = tangent(manifold, x, size=1.2)  # within the injectivity radius, pi / 2 or more on all of these
    y = manifold.exp(x, v)
    log = manifold.log(x, y)
    torch.testing.assert_close(log, v, **CLOSE)
    torch.testing.assert_close(manifold.dist(x, y), manifold.norm(x, log), **CLOSE)
    torch.testing.assert_close(manifold.dist(x, y), manifold.dist(y, x), **CLOSE)
    half = manifold.exp(x, log / 2)
    torch.testing.assert_close(manifold.dist(x, half), manifold.dist(x, y) / 2, **CLOSE)
    torch.testing.assert_close(manifold.dist(half, y), manifold.dist(x, y) / 2, **CLOSE)


@pytest.mark.parametrize(("manifold", "shape"), CURVED)
def test_dist_between_random_points_is_length_of_log(manifold: Any, shape: tuple[int, ...]) -> None:
    x, y, z = (point(manifold, (20, *shape), seed) for seed in range(3))
    log = manifold.log(x, y)
    # 1e-8: two random subspaces may have a principal angle close to a right one, where log is ill-conditioned.
    torch.testing.assert_close(manifold.dist(x, y), manifold.norm(x, log), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(manifold.represent(manifold.exp(x, log)), manifold.represent(y), rtol=1e-8, atol=1e-8)
    assert (manifold.dist(x, y) <= manifold.dist(x, z) + manifold.dist(z, y) + 1e-12).all()


@pytest.mark.parametrize(("manifold", "shape"), CURVED)
def test_transport_is_parallel(manifold: Any, shape: tuple[int, ...]) -> None:
    """An isometry that takes a geodesic's velocity to its velocity, and the limit of Schild's ladder."""
    x = point(manifold, (3, *shape))
    v, u = tangent(manifold, x, 1, size=0.7), tangent(manifold, x, 2)
    y = manifold.exp(x, v)
    moved = manifold.transport(x, y, u)
    torch.testing.assert_close(manifold.inner(y, moved, manifold.transport(x, y, v)), manifold.inner(x, u, v), **CLOSE)
    torch.testing.assert_close(manifold.norm(y, moved), manifold.norm(x, u), **CLOSE)
    torch.testing.assert_close(manifold.transport(x, y, v), -manifold.log(y, x), **CLOSE)
    torch.testing.assert_close(manifold.transport(y, x, moved), u, **CLOSE)
    # All of these are symmetric spaces: there the pole ladder is exact, (Pennec 2018, 1805.11436), for short rungs.
    middle = manifold.exp(x, v / 2)
    rung = manifold.exp(x, 0.1 * u)
    reflected = manifold.exp(middle, -manifold.log(middle, rung))
    torch.testing.assert_close(-10 * manifold.log(y, reflected), moved, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("manifold", "shape"), ALL)
def test_gradient_is_the_slope_along_curves(manifold: Any, shape: tuple[int, ...]) -> None:
    """<grad f, v> in the metric is d/dt f(retract(x, t v)), by central differences (error t^2 = 1e-8)."""
    x = point(manifold, shape)
    weight = randn(*shape, seed=5)

    def f(z: Tensor) -> Tensor:
        z = manifold.represent(z)
        return (z.sin() * (weight @ weight.mT if z.shape != weight.shape else weight)).sum()

    g = torch.func.grad(f)(x)
    v, t = tangent(manifold, x, 1), 1e-4
    slope = (f(manifold.retract(x, t * v)) - f(manifold.retract(x, -t * v))) / (2 * t)
    torch.testing.assert_close(manifold.inner(x, manifold.grad(x, g), v), slope, rtol=1e-6, atol=1e-6)
    pulled = manifold.pull(x, g)
    squares = sum(h.square().sum() for h in (pulled if isinstance(pulled, tuple) else (pulled,)))
    torch.testing.assert_close(manifold.norm(x, manifold.grad(x, g)) ** 2, squares, **CLOSE)


@pytest.mark.parametrize(("manifold", "shape"), ALL)
def test_retraction_has_the_order_it_should(manifold: Any, shape: tuple[int, ...]) -> None:
    """|retract(x, t v) - (x + t v)| falls as t^2; against the exponential as t^3 for a second-order retraction."""
    x = point(manifold, shape)
    v = tangent(manifold, x, 1)

    def slope(error: Callable[[float], Tensor]) -> float:
        first, second = error(4e-2), error(1e-2)
        return float(np.log(float(first / second)) / np.log(4)) if second > 1e-13 else np.inf

    assert slope(lambda t: (manifold.retract(x, t * v) - x - t * v).norm()) > 1.85
    # A QR of X + V differs from the geodesic at t^2, and so does the polar factor from the canonical geodesic.
    second_order = not isinstance(manifold, Stiefel) or manifold == Stiefel("euclidean", "polar")
    order = slope(
        lambda t: (manifold.represent(manifold.retract(x, t * v)) - manifold.represent(manifold.exp(x, t * v))).norm()
    )
    assert order > (2.85 if second_order else 1.85)


# Stiefel: the geodesic's own equation. --------------------------------------------------------------------------------


def geodesic_acceleration(metric: str, y: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Edelman, Arias and Smith 1998, equations 2.6 (Euclidean) and 2.41 (canonical)."""
    if metric == "euclidean":
        return -y @ (dy.T @ dy)
    turn = y.T @ dy
    return -dy @ dy.T @ y - y @ (turn @ turn + dy.T @ dy)


@pytest.mark.parametrize("shape", [(6, 3), (4, 4), (4, 1), (5, 4)])
@pytest.mark.parametrize("metric", ["euclidean", "canonical"])
def test_stiefel_exp_solves_the_geodesic_equation(metric: str, shape: tuple[int, int]) -> None:
    manifold = Stiefel(metric)
    x = point(manifold, shape)
    v = tangent(manifold, x, size=2.0)

    def flow(_: float, state: np.ndarray) -> np.ndarray:
        y, dy = state.reshape(2, *shape)
        return np.stack([dy, geodesic_acceleration(metric, y, dy)]).ravel()

    start = torch.stack([x, v]).numpy().ravel()
    end = solve_ivp(flow, (0, 1), start, method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1].reshape(2, *shape)[0]
    torch.testing.assert_close(manifold.exp(x, v), torch.from_numpy(end), rtol=1e-9, atol=1e-9)  # 1e3 steps of 1e-12


@pytest.mark.parametrize("metric", ["euclidean", "canonical"])
def test_stiefel_metric_and_length_of_geodesics(metric: str) -> None:
    manifold = Stiefel(metric)
    x = point(manifold, (6, 3))
    u, v = tangent(manifold, x, 1), tangent(manifold, x, 2)
    weight = torch.eye(6, dtype=torch.float64) - (0.5 * x @ x.mT if metric == "canonical" else 0)
    torch.testing.assert_close(manifold.inner(x, u, v), (u.mT @ weight @ v).trace(), **CLOSE)
    halfway = manifold.exp(x, v)
    t = 1e-5
    velocity = (manifold.exp(x, (1 + t) * v) - manifold.exp(x, (1 - t) * v)) / (2 * t)
    torch.testing.assert_close(manifold.norm(halfway, velocity), manifold.norm(x, v), rtol=1e-8, atol=1e-8)  # t^2


def test_square_stiefel_moves_by_the_matrix_exponential() -> None:
    x = point(Stiefel(), (4, 4))
    turn = randn(4, 4, seed=2)
    turn = turn - turn.mT
    for metric in ("euclidean", "canonical"):
        torch.testing.assert_close(Stiefel(metric).exp(x, x @ turn), x @ torch.linalg.matrix_exp(turn), **CLOSE)


def test_spd_congruence_is_an_isometry() -> None:
    """dist(A X A^T, A Y A^T) = dist(X, Y) for every invertible A, and dist(X^-1, Y^-1) = dist(X, Y)."""
    x, y, a = point(SPD(), (3, 4, 4), 0), point(SPD(), (3, 4, 4), 1), randn(4, 4, seed=3)
    d = SPD().dist(x, y)
    torch.testing.assert_close(SPD().dist(a @ x @ a.mT, a @ y @ a.mT), d, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(SPD().dist(x.inverse(), y.inverse()), d, rtol=1e-9, atol=1e-9)
    generalized = torch.linalg.eigvals(torch.linalg.solve(x, y)).real.log().norm(dim=-1)
    torch.testing.assert_close(d, generalized, **CLOSE)


# Fixed rank. ----------------------------------------------------------------------------------------------------------


def pair(*batch: int, m: int = 6, n: int = 5, r: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    return randn(*batch, m, r, seed=seed), randn(*batch, r, n, seed=seed + 100)


def loss_gradients(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    target = randn(b.shape[-2], a.shape[-1], seed=7)
    return torch.func.grad(lambda ba: ((ba[0] @ ba[1] - target) ** 3).sum())((b, a))


@pytest.mark.parametrize("batch", [(), (3,)], ids=["one", "batch"])
def test_fixed_rank_metric_and_gradient(batch: tuple[int, ...]) -> None:
    x, u, v = pair(*batch), pair(*batch, seed=1), pair(*batch, seed=2)
    (b, a), manifold = x, FixedRank()
    trace = torch.einsum("...ii->...", u[0] @ a @ a.mT @ v[0].mT) + torch.einsum(
        "...ii->...", u[1].mT @ b.mT @ b @ v[1]
    )
    torch.testing.assert_close(manifold.inner(x, u, v), trace, **CLOSE)
    g = loss_gradients(b, a)
    expected = g[0] @ (a @ a.mT).inverse(), (b.mT @ b).inverse() @ g[1]
    torch.testing.assert_close(manifold.grad(x, g), expected, **CLOSE)


def test_fixed_rank_gradient_is_the_slope_of_the_loss() -> None:
    (b, a), v, t = pair(), pair(seed=1), 1e-5
    target = randn(6, 5, seed=7)

    def f(step: float) -> Tensor:
        moved = FixedRank().retract((b, a), (step * v[0], step * v[1]))
        return ((FixedRank().represent(moved) - target) ** 3).sum()

    gradient = FixedRank().grad((b, a), loss_gradients(b, a))
    slope = (f(t) - f(-t)) / (2 * t)  # error t^2
    torch.testing.assert_close(FixedRank().inner((b, a), gradient, v), slope, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("condition", [1.0, 1e4, 1e8])
def test_fixed_rank_gradient_step_does_not_see_the_factorisation(condition: float) -> None:
    manifold, (b, a) = FixedRank(), pair()
    u, _, vt = torch.linalg.svd(randn(2, 2, seed=9))
    mix = u @ torch.diag(torch.tensor([condition, 1.0], dtype=torch.float64)) @ vt
    other = b @ mix, torch.linalg.solve(mix, a)

    def step(x: tuple[Tensor, Tensor]) -> Tensor:
        grad = manifold.grad(x, loss_gradients(*x))
        return manifold.represent(manifold.retract(x, tuple(-0.01 * part for part in grad))) - b @ a

    # The other pair's product is b @ a to eps * condition, and the algebra on it must lose no more.
    error = (step(other) - step((b, a))).abs().max() / step((b, a)).abs().max()
    assert error < 1e-13 + 1e-17 * condition


def test_fixed_rank_represents_the_tangent_to_first_order() -> None:
    x, v, t = pair(), pair(seed=1), 1e-6
    moved = FixedRank().represent(FixedRank().retract(x, (t * v[0], t * v[1])))
    rate = (moved - FixedRank().represent(x)) / t
    torch.testing.assert_close(rate, v[0] @ x[1] + x[0] @ v[1], rtol=1e-5, atol=1e-5)  # the next term is t


def test_fixed_rank_carries_momentum_through_the_tangent_vector() -> None:
    x, y, h = pair(), pair(seed=1), pair(seed=2)
    manifold = FixedRank()
    torch.testing.assert_close(manifold.push(y, manifold.carry(x, y, h)), manifold.push(x, h), **CLOSE)


# Product. -------------------------------------------------------------------------------------------------------------


def test_product_is_its_factors_side_by_side() -> None:
    factors = (Stiefel("canonical"), FixedRank(), SPD(), Sphere())
    manifold = Product(factors)
    shapes = ((5, 2), (4, 2), (2, 3), (3, 3), (4,))
    seed = torch.Generator().manual_seed(0)
    x = manifold.random_point(shapes, dtype=torch.float64, generator=seed)
    y = manifold.random_point(shapes, dtype=torch.float64, generator=seed)
    g = tuple(randn(*s, seed=i) for i, s in enumerate(shapes))
    u = manifold.grad(x, g)

    def split(t: tuple[Any, ...]) -> list[Any]:
        return [t[0], (t[1], t[2]), t[3], t[4]]

    def flat(parts: list[Any]) -> tuple[Tensor, ...]:
        return tuple(t for part in parts for t in (part if isinstance(part, tuple) else (part,)))

    pieces = list(zip(factors, split(x), split(y), split(g), split(u), strict=True))
    pulled = manifold.pull(x, g)
    blocks = [m.pull(a, c) for m, a, _, c, _ in pieces]
    assert torch.equal(torch.cat([t.ravel() for t in pulled]), torch.cat([t.ravel() for t in flat(blocks)]))
    checks = {
        "grad": (manifold.grad(x, g), flat([m.grad(a, c) for m, a, _, c, _ in pieces])),
        "push": (manifold.push(x, pulled), flat([m.push(a, h) for (m, a, *_), h in zip(pieces, blocks, strict=True)])),
        "coords": (manifold.coords(x, u), flat([m.coords(a, w) for m, a, _, _, w in pieces])),
        "retract": (manifold.retract(x, u), flat([m.retract(a, w) for m, a, _, _, w in pieces])),
        "project": (manifold.project(x), flat([m.project(a) for m, a, *_ in pieces])),
        "carry": (
            manifold.carry(x, y, pulled),
            flat([m.carry(a, b, h) for (m, a, b, *_), h in zip(pieces, blocks, strict=True)]),
        ),
        "decay": (
            manifold.decay(x, pulled, 0.3),
            flat([m.decay(a, h, 0.3) for (m, a, *_), h in zip(pieces, blocks, strict=True)]),
        ),
        "represent": (manifold.represent(x), flat([m.represent(a) for m, a, *_ in pieces])),
    }
    for name, (ours, theirs) in checks.items():
        assert len(ours) == len(theirs), name
        for a, b in zip(ours, theirs, strict=True):
            rounding = 1e-13 if name in ("grad", "retract") else 0  # for which factors have shorter formulas
            torch.testing.assert_close(a, b, rtol=rounding, atol=rounding, msg=name)
    total = sum(m.inner(a, w, w) for m, a, _, _, w in pieces)
    torch.testing.assert_close(manifold.inner(x, u, u), total, rtol=1e-14, atol=0)
