"""Positive semidefinite matrices of fixed rank: the quotient, where alignment is not unique, derivatives."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from steepest import PSDFixedRank

D, C = torch.float64, torch.complex128
M = PSDFixedRank()
scalars = pytest.mark.parametrize("dtype", [D, C])


def randn(*shape, seed=0, dtype=D):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def point(*shape, seed=0, dtype=D):
    return M.random_point(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def unitary(p, dtype, seed=9):
    return torch.linalg.qr(randn(p, p, seed=seed, dtype=dtype)).Q


@scalars
def test_nothing_depends_on_the_factor_chosen(dtype):
    x, y, v = point(5, 2, dtype=dtype), point(5, 2, seed=1, dtype=dtype), randn(5, 2, seed=2, dtype=dtype)
    q, r = unitary(2, dtype), unitary(2, dtype, seed=8)
    close = {"rtol": 1e-12, "atol": 1e-13}
    torch.testing.assert_close(M.represent(x @ q), M.represent(x), **close)
    torch.testing.assert_close(M.push(x @ q, v @ q), M.push(x, v) @ q, **close)
    torch.testing.assert_close(M.dist(x @ q, y @ r), M.dist(x, y), **close)
    torch.testing.assert_close(M.log(x @ q, y @ r), M.log(x, y) @ q, **close)
    moved = M.transport(x @ q, y @ r, M.push(x, v) @ q)
    torch.testing.assert_close(moved, M.transport(x, y, M.push(x, v)) @ r, **close)


@scalars
def test_the_norm_is_the_bures_wasserstein_metric_of_the_tangent_matrix(dtype):
    """W = Y V^H + V Y^H has squared length tr(L X L), where L X + X L = W, W in the tangent space at X."""
    y = point(4, 4, dtype=dtype)
    v = M.push(y, randn(4, 4, seed=1, dtype=dtype))
    x, w = y @ y.mH, y @ v.mH + v @ y.mH
    e, u = torch.linalg.eigh(x)
    lyapunov = u @ (u.mH @ w @ u / (e[:, None] + e)) @ u.mH
    torch.testing.assert_close(M.norm(y, v) ** 2, (lyapunov @ x @ lyapunov).trace().real, rtol=1e-11, atol=0)


@scalars
def test_alignment_where_it_is_not_unique(dtype):
    """Orthogonal ranges, in part or in full: every alignment is as good, and one that is unitary is found."""
    eye = torch.eye(5, dtype=dtype)
    for x, y in ((eye[:, :2], 2 * eye[:, 2:4]), (eye[:, :2], 2 * eye[:, 1:3])):
        shared = (x.mH @ y).abs().sum().item()
        assert M.dist(x, y).item() == pytest.approx(math.sqrt(2 + 8 - 2 * shared))
        torch.testing.assert_close(M.represent(M.exp(x, M.log(x, y))), M.represent(y))
        assert M.dist(x, y) == pytest.approx(M.dist(y, x).item())


def test_a_point_has_full_rank():
    assert M.residual(torch.eye(3)[:, :2]) == 0
    assert M.residual(torch.ones(3, 2)) == torch.inf
    assert M.residual(torch.zeros(3, 1)) == torch.inf
    assert M.residual(torch.tensor([[1.0], [torch.inf]])).isnan()
    with pytest.raises(ValueError, match="x is not a point"):
        M.check_point(torch.ones(3, 2))
    with pytest.raises(ValueError, match="rank of an n x n matrix"):
        M.check_point(torch.ones(2, 3))


def test_weight_decay_shrinks_the_matrix_by_its_rate():
    y = point(4, 2)
    h = M.decay(y, torch.zeros(4, 2, dtype=D), 1.0)
    shrunk = M.represent(M.retract(y, M.push(y, -1e-4 * h)))
    torch.testing.assert_close(shrunk, (1 - 1e-4) * M.represent(y), rtol=0, atol=1e-8)  # 1e-4 squared


@scalars
def test_derivatives(dtype):
    x0, y0 = point(4, 2, dtype=dtype), point(4, 2, seed=1, dtype=dtype)
    h, k, v = (0.2 * randn(4, 2, seed=s, dtype=dtype) for s in (2, 3, 4))
    at = lambda x, h: M.retract(x, M.push(x, h))  # noqa: E731
    functions = {
        "exp": lambda h, v: M.exp(at(x0, h), M.push(at(x0, h), v)),
        "log": lambda h, k: M.log(at(x0, h), at(y0, k)),
        "dist": lambda h, k: M.dist(at(x0, h), at(y0, k)),
        "transport": lambda h, k: M.transport(at(x0, h), at(y0, k), M.push(at(x0, h), v)),
        "log of itself": lambda h, k: M.log(at(x0, h), at(x0, k)),
    }
    zero = torch.zeros_like(h)
    places = [("exp", h, v), ("exp", h, zero), ("log", h, k), ("dist", h, k), ("transport", h, k)]
    for name, *arguments in [*places, ("log of itself", zero, zero), ("log of itself", h, h)]:
        inputs = tuple(t.clone().requires_grad_() for t in arguments)
        assert gradcheck(functions[name], inputs, fast_mode=dtype.is_complex), name
        assert gradgradcheck(functions[name], inputs, fast_mode=True), name


def test_derivatives_of_the_mean():
    x0 = point(3, 2)
    at = lambda h: M.retract(x0, M.push(x0, h))  # noqa: E731
    center = lambda h, k, w: M.represent(M.mean(torch.stack([x0, at(h), at(k)]), w.softmax(0)))  # noqa: E731
    inputs = tuple((0.2 * randn(*s, seed=i)).requires_grad_() for i, s in enumerate([(3, 2), (3, 2), (3,)]))
    assert gradcheck(
        center, inputs, atol=1e-5, fast_mode=True
    )  # the mean is found to some 1e-13, and differences divide it by 1e-6


def test_functional_transforms():
    x, y, h = point(3, 5, 2), point(3, 5, 2, seed=1), randn(3, 5, 2)
    for call, *arguments in ((M.push, x, h), (M.log, x, y), (M.dist, x, y), (M.transport, x, y, h)):
        torch.testing.assert_close(torch.vmap(call)(*arguments), call(*arguments))
