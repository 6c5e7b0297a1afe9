"""Flags: what counts of a basis, distances and averages in the chordal metric, derivatives."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from steepest import Flag, Grassmann, Stiefel

CASES = [
    pytest.param(Flag(dims), n, dtype, id=f"{dims}-{n}-{dtype}")
    for dims, n in [((1, 2), 6), ((3,), 6), ((2, 1, 1), 4)]
    for dtype in (torch.float64, torch.complex128)
]
CLOSE = {"rtol": 1e-10, "atol": 1e-11}


def points(m, n, dtype, batch=(), count=5, spread=0.5):
    """Flags around a random one."""
    x = m.random_point((*batch, n, sum(m.dims)), dtype=dtype)
    x = x.expand(count, *x.shape)
    return m.retract(x, spread * m.random_tangent(x))


def mixing(m, dtype, batch=()):
    """A random rotation within each block."""
    return torch.block_diag(*(torch.linalg.qr(torch.randn(d, d, dtype=dtype)).Q for d in m.dims))


@pytest.mark.parametrize(("m", "n", "dtype"), CASES)
def test_only_the_spans_count(m, n, dtype):
    x, y, *_ = points(m, n, dtype)
    q, r = mixing(m, dtype), mixing(m, dtype)
    torch.testing.assert_close(m.represent(x @ q), m.represent(x), **CLOSE)
    torch.testing.assert_close(m.chordal_dist(x @ q, y @ r), m.chordal_dist(x, y), **CLOSE)
    v = m.random_tangent(x)
    for retraction in ("qr", "polar", "exp"):
        step = type(m)(m.dims, retraction)
        there = m.represent(step.retract(x, v))
        torch.testing.assert_close(m.represent(step.retract(x @ q, v @ q)), there, **CLOSE)
    apart = m.represent(x) - m.represent(m.retract(x, 0.1 * v))
    assert apart.abs().max() > 1e-3
    torch.testing.assert_close(m.norm(x @ q, v @ q), m.norm(x, v), **CLOSE)


@pytest.mark.parametrize(("m", "n", "dtype"), CASES)
def test_chordal_dist_is_that_of_the_projectors(m, n, dtype):
    x, y, *_ = points(m, n, dtype, (3,))
    gaps = [a @ a.mH - b @ b.mH for a, b in zip(x.split(m.dims, -1), y.split(m.dims, -1), strict=True)]
    oracle = (sum(g.abs().square().sum((-2, -1)) for g in gaps) / 2).sqrt()
    torch.testing.assert_close(m.chordal_dist(x, y), oracle, **CLOSE)
    torch.testing.assert_close(m.chordal_dist(y, x), oracle, **CLOSE)
    assert m.chordal_dist(x, x).max() < 1e-14
    v = 1e-7 * m.random_tangent(x)
    # for small steps it is the length in which the skew part counts twice
    a, z = m.coords(x, v)
    length = (2 * a.abs().square().sum((-2, -1)) + z.abs().square().sum((-2, -1))).sqrt()
    torch.testing.assert_close(m.chordal_dist(x, m.exp(x, v)), length, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("m", "n", "dtype"), CASES)
@pytest.mark.parametrize("average", ["chordal_mean", "chordal_median"])
def test_averages(m, n, dtype, average):
    f = getattr(m, average)
    x = points(m, n, dtype, (2,))
    y = f(x)
    m.check_point(y)
    torch.testing.assert_close(m.represent(f(x[:, 1])), m.represent(y[1]), rtol=1e-7, atol=1e-8)  # the median's rest
    same = x[:1].expand(3, *x.shape[1:])
    torch.testing.assert_close(m.represent(f(same)), m.represent(x[0]), **CLOSE)
    mixed = torch.stack([p @ mixing(m, dtype) for p in x])
    torch.testing.assert_close(m.represent(f(mixed)), m.represent(y), rtol=1e-7, atol=1e-8)
    q = torch.linalg.qr(torch.randn(n, n, dtype=dtype)).Q
    torch.testing.assert_close(m.represent(f(q @ x)), q @ m.represent(y) @ q.mH, rtol=1e-7, atol=1e-8)
    power = 2 if average == "chordal_mean" else 1
    loss = lambda y: (m.chordal_dist(x, y.expand_as(x)) ** power).sum(0)  # noqa: E731
    for _ in range(20):
        assert (loss(m.retract(y, 1e-2 * m.random_tangent(y))) > loss(y)).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_mean_of_single_blocks_is_the_leading_eigenspace(dtype):
    m = Flag((2,))
    x = points(m, 6, dtype, (4,), spread=1.0)
    w = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    mean_projector = torch.einsum("i,ibnp,ibmp->bnm", (w / w.sum()).to(dtype), x, x.conj())
    oracle = torch.linalg.eigh(mean_projector).eigenvectors[..., -2:]
    torch.testing.assert_close(m.represent(m.chordal_mean(x, w)), oracle @ oracle.mH, **CLOSE)


def test_median_resists_outliers():
    m = Flag((1, 2))
    truth = m.random_point((8, 3), dtype=torch.float64)
    near = m.retract(truth.expand(12, 8, 3), 0.02 * m.random_tangent(truth.expand(12, 8, 3)))
    far = m.retract(truth.expand(5, 8, 3), 0.02 * m.random_tangent(truth.expand(5, 8, 3)))
    far = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q @ far  # one other place, for all of them
    x = torch.cat([near, far])
    median, mean = m.chordal_dist(m.chordal_median(x), truth), m.chordal_dist(m.chordal_mean(x), truth)
    assert median < mean / 3
    assert median < 0.1


def test_median_may_be_one_of_the_points():
    m = Flag((1, 1))
    x = points(m, 5, torch.float64, count=4)
    w = torch.tensor([5.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    assert m.chordal_dist(m.chordal_median(x, w), x[0]) < 1e-6


@pytest.mark.parametrize("m", [Flag((1, 1)), Flag((1,))])
def test_mean_has_derivatives(m):
    x = points(m, 3, torch.float64, count=2)
    w = torch.tensor([0.2, 0.3], dtype=torch.float64, requires_grad=True)
    h = torch.zeros_like(x, requires_grad=True)

    def mean(h, w):
        return m.represent(m.chordal_mean(m.retract(x, m.push(x, (h.mT @ x, h))), w))

    assert gradcheck(mean, (h, w), fast_mode=True)  # along one random direction
    assert gradgradcheck(mean, (h, w), fast_mode=True)


@pytest.mark.parametrize("length", [0.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_derivatives_of_exp(length, dtype):
    m = Flag((1, 1))
    x = m.random_point((4, 2), dtype=dtype)
    v = length * m.random_tangent(x)
    h, k = (torch.zeros_like(x, requires_grad=True) for _ in range(2))
    start = lambda h: m.retract(x, m.push(x, (x.mH @ h, h)))  # noqa: E731
    call = lambda h, k: m.exp(start(h), m.push(start(h), m.coords(x, v + k)))  # noqa: E731
    assert gradcheck(call, (h, k))
    assert gradgradcheck(call, (h, k), fast_mode=True)  # along one random direction


def test_one_block_is_grassmann_and_lines_are_stiefel_up_to_signs():
    x = Grassmann().random_point((6, 2), dtype=torch.float64)
    one, lines = Flag((2,)), Flag((1, 1))
    v = one.random_tangent(x)
    torch.testing.assert_close(one.represent(one.exp(x, v)), Grassmann().represent(Grassmann().exp(x, v)), **CLOSE)
    torch.testing.assert_close(one.norm(x, v), Grassmann().norm(x, v), **CLOSE)
    assert one.dim((6, 2)) == Grassmann().dim((6, 2))
    y = one.exp(x, 0.2 * v)
    torch.testing.assert_close(one.dist(x, y), Grassmann().dist(x, y), rtol=1e-9, atol=1e-9)
    u = lines.random_tangent(x)
    torch.testing.assert_close(lines.norm(x, u), Stiefel("canonical").norm(x, u), **CLOSE)
    assert lines.dim((6, 2)) == Stiefel().dim((6, 2))


def test_dims_are_validated():
    for dims in ((), (0, 2), (1.0,), 3, (True, 2)):
        with pytest.raises(ValueError, match="dims: got"):
            Flag(dims)
    with pytest.raises(ValueError, match=r"w: shape \(5, 2\) is not \(..., n, 3\): dims = \(1, 2\) sum to 3"):
        Flag((1, 2)).check_point(torch.eye(5)[:, :2], "w")
    with pytest.raises(ValueError, match="points: expected orthonormal bases"):
        Flag((1, 2)).chordal_mean(torch.eye(5)[:, :3])
    with pytest.raises(ValueError, match="weights: got shape"):
        Flag((1, 2)).chordal_mean(torch.eye(5)[:, :3].expand(4, 5, 3), torch.ones(3))
    assert Flag([1, 2]) == Flag((1, 2))
    assert math.isclose(Flag((1, 2)).dim((5, 3)), 3 * 5 - 6 - 1)
