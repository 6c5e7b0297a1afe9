"""Fixed rank against pymanopt and dense formulas, Tucker against dense projections (no peer has it).

pymanopt keeps S diagonal, so that its gradient divides by gaps between singular values; it is compared where these
differ. Everything is float64 on well-conditioned points; `CLOSE` is the rounding of a hundred operations.
"""

import numpy as np
import pytest
import torch

from steepest import FixedRank, FixedRankEmbedded, Tucker
from steepest.testing.manifold import Case, real_vector

pymanopt = pytest.importorskip("pymanopt")
from pymanopt.manifolds.fixed_rank import _FixedRankPoint, _FixedRankTangentVector  # noqa: E402

CLOSE = {"rtol": 1e-10, "atol": 1e-11}
M, N, R = 6, 5, 2
SHAPE = ((M, R), (R, R), (N, R))


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def diagonal_point(seed=0):
    """The same matrix for us and for pymanopt."""
    u, s, v = FixedRankEmbedded().from_matrix(randn(M, R, seed=seed) @ randn(R, N, seed=seed + 50), R)
    return (u, s, v), _FixedRankPoint(u.numpy(), s.diagonal().numpy(), v.mT.numpy())


def theirs(h):
    up, m, vp = h
    return _FixedRankTangentVector(up.numpy(), m.numpy(), vp.numpy())


def check(h, peer):
    for a, b in zip(h, (peer.Up, peer.M, peer.Vp), strict=True):
        np.testing.assert_allclose(a.numpy(), b, **CLOSE)


def test_fixed_rank_embedded_agrees_with_pymanopt():
    m, peer = FixedRankEmbedded("projection"), pymanopt.manifolds.FixedRankEmbedded(M, N, R)
    (x, px), (y, py) = diagonal_point(0), diagonal_point(7)
    u, s, v = x
    c = randn(M, N, seed=3)
    g = c @ v @ s.mH, u.mH @ c @ v, c.mH @ u @ s
    h = m.pull(x, g)
    check(h, peer.projection(px, c.numpy()))
    slopes = (g[0].numpy(), g[1].diagonal().numpy(), g[2].mT.numpy())
    check(h, peer.euclidean_to_riemannian_gradient(px, slopes))
    k = m.conform(x, tuple(randn(*a.shape, seed=i) for i, a in enumerate(x)))
    inner = m.inner(x, m.push(x, h), m.push(x, k))
    np.testing.assert_allclose(inner.item(), peer.inner_product(px, theirs(h), theirs(k)), **CLOSE)
    np.testing.assert_allclose(m.norm(x, m.push(x, h)).item(), peer.norm(px, theirs(h)), **CLOSE)
    check(m.carry(x, y, h), peer.transport(px, py, theirs(h)))
    check(m.coords(y, m.transport(x, y, m.push(x, h))), peer.transport(px, py, theirs(h)))
    end = peer.retraction(px, theirs(k))
    np.testing.assert_allclose(m.represent(m.retract(x, m.push(x, k))).numpy(), end.u * end.s @ end.vt, **CLOSE)
    assert m.dim(SHAPE) == peer.dim


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_splitting_is_two_projections_of_the_dense_matrix(dtype):
    """W + X onto the columns of (W + X) V, then onto the rows of what is left (Lubich and Oseledets 2014)."""
    m = FixedRankEmbedded()
    case = Case(m, SHAPE, dtype=dtype)
    x, v = case.point(), case.tangent(case.point())
    z = m.represent(x) + torch.func.jvp(m.represent, (x,), (v,))[1]
    left, _ = torch.linalg.qr(z @ x[2])
    torch.testing.assert_close(m.represent(m.retract(x, v)), left @ (left.mH @ z), **CLOSE)


def test_splitting_steps_of_rank_r_are_exact():
    """Where W + X has rank r (columns alone move), the step is W + X itself."""
    m = FixedRankEmbedded()
    case = Case(m, SHAPE)
    x = case.point()
    up, core, vp = m.conform(x, case.coordinates(x))
    v = m.push(x, (up, core, 0 * vp))
    z = m.represent(x) + torch.func.jvp(m.represent, (x,), (v,))[1]
    torch.testing.assert_close(m.represent(m.retract(x, v)), z, **CLOSE)


def test_hessian_of_the_distance_to_a_matrix():
    """Of |W - T|^2 / 2: the step itself, and what the part N of W - T normal to the manifold adds, N dV and N^H dU
    (Vandereycken 2013, proposition 2.3)."""
    m = FixedRankEmbedded()
    case = Case(m, SHAPE, dtype=torch.complex128)
    u, s, v = x = case.point()
    target = randn(M, N, dtype=torch.complex128)
    up, core, vp = h = m.conform(x, case.coordinates(x))
    xi = m.push(x, h)

    def gradient(x):
        u, s, v = x
        c = u @ s @ v.mH - target
        return c @ v @ s.mH, u.mH @ c @ v, c.mH @ u @ s

    g, gv = torch.func.jvp(gradient, (x,), (xi,))
    c = m.represent(x) - target
    normal = c - u @ (u.mH @ c) - (c @ v) @ v.mH + u @ (u.mH @ c @ v) @ v.mH
    inverse = torch.linalg.inv(s)
    bent = up + normal @ vp @ inverse.mH, core, vp + normal.mH @ up @ inverse
    torch.testing.assert_close(m.coords(x, m.hessian(x, g, gv, xi)), bent, **CLOSE)


# Tucker. --------------------------------------------------------------------------------------------------------------

POINTS = [
    (Tucker(3), ((2, 3, 2), (4, 2), (3, 3), (3, 2))),
    (Tucker(2), ((2, 2), (4, 2), (3, 2))),
    (Tucker(4), ((2, 1, 2, 2), (3, 2), (2, 1), (2, 2), (3, 2))),
]
IDS = ["three", "two", "four"]
DTYPES = [torch.float64, torch.complex128]


def tangents(m, x):
    """Columns that span the tangent space of dense tensors, over the real numbers, from the definition of X alone."""
    columns = []
    for i, t in enumerate(x):
        for j in range(t.numel()):
            for unit in (1.0, 1j) if t.is_complex() else (1.0,):
                e = torch.zeros_like(t)
                e.view(-1)[j] = unit
                v = tuple(e if i == k else torch.zeros_like(s) for k, s in enumerate(x))
                columns.append(real_vector(torch.func.jvp(m.represent, (x,), (v,))[1]))
    return torch.stack(columns, -1)


def dense(m, x, v):
    return torch.func.jvp(m.represent, (x,), (v,))[1]


def projector(m, x):
    left, values, _ = torch.linalg.svd(tangents(m, x), full_matrices=False)
    q = left[:, values > 1e-9 * values[0]]
    return q @ q.mT, q.shape[-1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "shape"), POINTS, ids=IDS)
def test_tucker_gradient_is_the_dense_projection(m, shape, dtype):
    case = Case(m, shape, dtype=dtype)
    x = case.point()
    c = randn(*m.represent(x).shape, seed=5, dtype=dtype)
    g = torch.func.grad(lambda x: (c.conj() * m.represent(x)).real.sum())(x)
    p, rank = projector(m, x)
    found, expected = real_vector(dense(m, x, m.grad(x, g))), p @ real_vector(c)
    torch.testing.assert_close(found, expected, **CLOSE)
    length = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(b) for b in m.pull(x, g)]))
    torch.testing.assert_close(length, expected.norm(), **CLOSE)
    assert rank == m.dim(shape, "complex" if dtype.is_complex else "real")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "shape"), POINTS, ids=IDS)
def test_tucker_metric_and_carry(m, shape, dtype):
    case = Case(m, shape, dtype=dtype)
    x, y = case.point(), case.another()
    h = case.coordinates(x)  # with parts that stand for nothing, as Adam's momentum has
    v, w = m.push(x, h), case.tangent(x, 8)
    inner = (dense(m, x, v).conj() * dense(m, x, w)).real.sum()
    torch.testing.assert_close(m.inner(x, v, w), inner, **CLOSE)
    p, _ = projector(m, y)
    moved = real_vector(dense(m, y, m.push(y, m.carry(x, y, h))))
    torch.testing.assert_close(moved, p @ real_vector(dense(m, x, v)), **CLOSE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "shape"), POINTS, ids=IDS)
def test_tucker_retraction_is_one_pass_of_orthogonal_iteration(m, shape, dtype):
    """The dense tensor X + xi, projected in each mode onto the columns of its unfolding times the rows of X's."""
    case = Case(m, shape, dtype=dtype)
    x, v = case.point(), case.tangent(case.point())
    start = m.represent(x)
    z = start + dense(m, x, v)
    out = z
    for i in range(m.order):
        rows = torch.linalg.svd(m._unfold(start, i), full_matrices=False)[2][: shape[0][i]].mH
        q, _ = torch.linalg.qr(m._unfold(z, i) @ rows)
        out = m._times(out, q @ q.mH, i)
    torch.testing.assert_close(m.represent(m.retract(x, v)), out, **CLOSE)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tucker_of_order_two_is_fixed_rank(dtype):
    """Metric, gradient's length, geodesics and distance, with V conjugate."""
    two, m = Tucker(2), FixedRankEmbedded()
    case = Case(m, ((4, 2), (2, 2), (3, 2)), dtype=dtype)
    u, s, v = x = case.point()
    du, ds, dv = step = tuple(0.3 * t for t in case.tangent(x))
    core, other = (s, u, v.conj()), (ds, du, dv.conj())
    torch.testing.assert_close(two.norm(core, other), m.norm(x, step), **CLOSE)
    end, there = m.exp(x, step), two.exp(core, other)
    torch.testing.assert_close(two.represent(there), m.represent(end), **CLOSE)
    torch.testing.assert_close(two.dist(core, there), m.norm(x, step), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(m.dist(x, end), m.norm(x, step), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pairs_and_triples_have_the_same_tangent_matrices(dtype):
    """The metrics differ by what both factors share, so that the gradient of pairs counts U M V^H twice."""
    pairs, triples = FixedRank(), FixedRankEmbedded()
    b, a = pairs.random_point(((M, R), (R, N)), dtype=dtype, generator=torch.Generator().manual_seed(0))
    x = u, s, v = triples.from_factors((b, a))
    c = randn(M, N, seed=3, dtype=dtype)
    v_pairs = pairs.grad((b, a), (c @ a.mH, b.mH @ c))
    up, core, vp = triples.pull(x, (c @ v @ s.mH, u.mH @ c @ v, c.mH @ u @ s))
    torch.testing.assert_close(v_pairs[0] @ a + b @ v_pairs[1], u @ (2 * core) @ v.mH + up @ v.mH + u @ vp.mH, **CLOSE)
