"""Functions of symmetric matrices against scipy, and their derivatives where eigenvalues repeat."""

import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, vmap

from steepest.linalg import skew, sym, sym_exp, sym_inv_sqrt, sym_log, sym_power, sym_sqrt
from steepest.linalg.symmetric import EXP, INV_SQRT, LOG, SQRT, integer_power, real_power

FUNCTIONS = {
    "exp": (sym_exp, scipy.linalg.expm),
    "log": (sym_log, scipy.linalg.logm),
    "sqrt": (sym_sqrt, scipy.linalg.sqrtm),
    "inv_sqrt": (sym_inv_sqrt, lambda a: scipy.linalg.inv(scipy.linalg.sqrtm(a))),
    "power 0.3": (lambda a: sym_power(a, 0.3), lambda a: scipy.linalg.fractional_matrix_power(a, 0.3)),
    "power -1.7": (lambda a: sym_power(a, -1.7), lambda a: scipy.linalg.fractional_matrix_power(a, -1.7)),
    "power 3": (lambda a: sym_power(a, 3), lambda a: a @ a @ a),
    "power -2": (lambda a: sym_power(a, -2.0), lambda a: scipy.linalg.inv(a @ a)),
    "power 1": (lambda a: sym_power(a, 1), lambda a: a),
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


def spd(*shape, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(*shape, shape[-1], generator=g, dtype=torch.float64)
    return (a @ a.mT / shape[-1] + 0.5 * torch.eye(shape[-1], dtype=torch.float64)).to(dtype)


def with_eigenvalues(*w, seed=0):
    q = torch.linalg.qr(torch.randn(len(w), len(w), generator=torch.Generator().manual_seed(seed)).double()).Q
    return (q * torch.tensor(w, dtype=torch.float64)) @ q.mT


# Distinct, repeated, all equal, and equal to all but rounding: the last three break autograd through eigh.
POINTS = {
    "distinct": with_eigenvalues(0.5, 1.0, 2.0),
    "repeated": with_eigenvalues(1.0, 1.0, 2.0),
    "identity": torch.eye(3, dtype=torch.float64),
    "near": with_eigenvalues(1.0, 1.0 + 1e-9, 2.0),
}
every_point = pytest.mark.parametrize("point", POINTS)


@every_function
def test_agrees_with_scipy_and_batches(name):
    ours, oracle = FUNCTIONS[name]
    a = spd(2, 3, 5)
    expected = torch.stack([torch.as_tensor(oracle(m.numpy()).real) for m in a.flatten(0, 1)]).view_as(a)
    # Both round in float64; condition numbers are below 20.
    torch.testing.assert_close(ours(a), expected, rtol=1e-10, atol=1e-11)
    # LAPACK treats a batch matrix by matrix, the products need not round alike.
    torch.testing.assert_close(ours(a)[1, 2], ours(a[1, 2]), rtol=1e-12, atol=1e-12)


@every_function
@every_point
def test_derivatives_are_exact(name, point):
    f, _ = FUNCTIONS[name]
    a = POINTS[point].clone().requires_grad_()
    assert gradcheck(f, a, check_forward_ad=True)
    assert gradgradcheck(f, a)


@every_function
def test_functional_transforms(name):
    f, _ = FUNCTIONS[name]
    a = torch.stack(list(POINTS.values()))
    loss = lambda x: f(x).square().sum()  # noqa: E731
    batched = torch.autograd.grad(loss(a.requires_grad_()), a)[0]
    a = a.detach()
    torch.testing.assert_close(vmap(grad(loss))(a), batched)
    reference = vmap(jacrev(grad(loss)))(a)
    torch.testing.assert_close(vmap(hessian(loss))(a), reference)
    torch.testing.assert_close(torch.stack([jacfwd(jacfwd(loss))(x) for x in a]), reference)
    assert reference.isfinite().all()


def test_third_derivative_raises_instead_of_being_wrong():
    a = POINTS["distinct"].clone().requires_grad_()
    first = torch.autograd.grad(sym_exp(a).square().sum(), a, create_graph=True)[0]
    second = torch.autograd.grad(first.square().sum(), a, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="third"):
        torch.autograd.grad(second.sum(), a)


@pytest.mark.parametrize("f", [EXP, LOG, SQRT, INV_SQRT, real_power(0.3), integer_power(3), integer_power(-2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=40, deadline=None)
@given(base=st.floats(0.01, 20), exponent=st.floats(-20, 1))
def test_divided_differences_do_not_cancel(f, dtype, base, exponent):
    a = torch.tensor(base, dtype=dtype)
    b = a + 10**exponent
    # The mean of f' by Gauss-Legendre is the divided difference; only narrow intervals, where 3 nodes are exact enough.
    if b - a > 0.02 * a.clamp(max=1):
        return
    nodes = torch.tensor([-(0.6**0.5), 0, 0.6**0.5], dtype=torch.float64)
    x = 0.5 * (a + b).double() + 0.5 * (b - a).double() * nodes
    mean = (f.slope(x, x) * torch.tensor([5, 8, 5], dtype=torch.float64)).sum() / 18
    # A handful of roundings, and the quadrature's (gap / base)^6.
    torch.testing.assert_close(f.slope(a, b).double(), mean, rtol=20 * torch.finfo(dtype).eps + 1e-11, atol=0)


@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-9, 0.0])
def test_second_derivative_near_a_repeated_eigenvalue(gap):
    a, e = (
        with_eigenvalues(1.0, 1.0 + gap, 3.0),
        sym(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)).double()),
    )
    # d2/dt2 exp(A + t E) is block [0, 2] of twice the exponential of a block-bidiagonal matrix.
    z = torch.zeros_like(a)
    block = torch.cat([torch.cat(row, 1) for row in ((a, e, z), (z, a, e), (z, z, a))], 0)
    expected = 2 * torch.matrix_exp(block)[:3, 6:]
    line = lambda t: sym_exp(a + t * e)  # noqa: E731
    got = jacfwd(jacfwd(line))(torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)  # eps^(2/3) by the confluent formula


def test_semidefinite_and_indefinite_input():
    q = with_eigenvalues(4.0, 1.0, 0.0, 0.0)
    torch.testing.assert_close(sym_sqrt(q), with_eigenvalues(2.0, 1.0, 0.0, 0.0), atol=1e-7, rtol=0)  # sqrt of rounding
    assert sym_power(q, 0.5).isfinite().all()
    indefinite = with_eigenvalues(-2.0, 1.0, 3.0)
    torch.testing.assert_close(sym_power(indefinite, 3), indefinite @ indefinite @ indefinite)
    assert sym_sqrt(indefinite).isnan().all()  # not silently something else


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_runs_in_float32(dtype):
    a = spd(2, 6).to(dtype)
    exact = sym_log(sym(a.double()))
    # One rounding to the dtype; for float32, what LAPACK's eigenvalues err by.
    tolerance = max(1e-5, torch.finfo(dtype).eps)
    assert sym_log(a).dtype == dtype
    torch.testing.assert_close(sym_log(a).double(), exact, rtol=tolerance, atol=tolerance)


def test_large_gaps_do_not_overflow():
    # sinh of half the gap overflows in float32; the divided difference e^80 / 280 does not.
    a = torch.diag(torch.tensor([80.0, -200.0])).requires_grad_()
    (g,) = torch.autograd.grad(sym_exp(a)[0, 1], a)
    torch.testing.assert_close(g[0, 1].double(), (torch.tensor(80.0).double().exp() / 280 / 2), rtol=1e-6, atol=0)


def test_parts_and_errors():
    a = torch.randn(2, 3, 3)
    torch.testing.assert_close(sym(a) + skew(a), a)
    assert torch.equal(sym(a), sym(a).mT)
    assert torch.equal(skew(a), -skew(a).mT)
    with pytest.raises(ValueError, match=r"a: expected a square matrix .* \(2, 3\)"):
        sym_exp(torch.zeros(2, 3))


def test_compiles_in_one_graph():
    a = spd(2, 4).requires_grad_()
    loss = torch.compile(lambda x: sym_log(x).square().sum(), fullgraph=True, backend="aot_eager")
    (g,) = torch.autograd.grad(loss(a), a)
    torch.testing.assert_close(g, torch.autograd.grad(sym_log(a).square().sum(), a)[0])


@pytest.mark.slow
def test_compiles_with_inductor():
    a = spd(2, 4)
    torch.testing.assert_close(torch.compile(sym_log, fullgraph=True)(a), sym_log(a))


def _with_eigenvalues(w):
    q = torch.linalg.qr(torch.randn(len(w), len(w), dtype=torch.float64))[0]
    return q * torch.tensor(w, dtype=torch.float64) @ q.T


@pytest.mark.parametrize("w", [[0.1, 0.5, 0.9], [0.3, 0.3, 0.99], [1.0, 1.0, 1 - 1e-9], [0.0, 1.0, 0.5]])
def test_angle_over_sine(w):
    from steepest.linalg import sym_angle_over_sine

    a = _with_eigenvalues(w)
    angle = torch.linalg.eigvalsh(a).clamp(-1, 1).acos()
    expected = torch.where(angle < 1e-4, 1 + angle**2 / 6, angle / angle.sin()).sort().values
    got = torch.linalg.eigvalsh(sym_angle_over_sine(a)).sort().values
    # arccos near one loses half of the oracle's digits, and the square in the series brings them back
    assert (got - expected).abs().max() < 1e-10
    if max(w) < 1:
        b = a.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda t: sym_angle_over_sine((t + t.mT) / 2), (b,))
        assert torch.autograd.gradgradcheck(lambda t: sym_angle_over_sine((t + t.mT) / 2), (b,), atol=1e-4)


def test_low_rank_expm1():
    from steepest.linalg import low_rank_expm1

    p, q, x = (torch.randn(3, 7, k, dtype=torch.float64) / 3 for k in (4, 4, 2))
    eye = torch.eye(7, dtype=torch.float64)
    assert torch.allclose(low_rank_expm1(p, q, x), (torch.linalg.matrix_exp(p @ q.mT) - eye) @ x, atol=1e-12)
