"""Functions of symmetric matrices against scipy, and their derivatives where eigenvalues repeat."""

from itertools import permutations

import mpmath
import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, vmap

from steepest.linalg import (
    skew,
    sym,
    sym_angle_over_sine,
    sym_exp,
    sym_exp_derivative,
    sym_inv_sqrt,
    sym_log,
    sym_log_derivative,
    sym_power,
    sym_power_derivative,
    sym_sqrt,
    symmetric,
)
from steepest.linalg.scalars import ANGLE_OVER_SINE, EXP, INV_SQRT, LOG, SQRT, divided_differences, power

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


def with_eigenvalues(*w, seed=0, dtype=torch.float64):
    q = torch.linalg.qr(torch.randn(len(w), len(w), generator=torch.Generator().manual_seed(seed), dtype=dtype)).Q
    return (q * torch.tensor(w, dtype=torch.float64)) @ q.mH


# Distinct, repeated, all equal, and close: all but the first break autograd through eigh.
EIGENVALUES = {
    "distinct": (0.5, 1.0, 2.0),
    "repeated": (1.0, 1.0, 2.0),
    "identity": (1.0, 1.0, 1.0),
    **{f"gap {gap}": (1.0, 1.0 + gap, 2.0) for gap in (1e-3, 1e-6, 1e-9)},
}
POINTS = {name: with_eigenvalues(*w) for name, w in EIGENVALUES.items()}
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
def test_complex_values_and_derivatives(name):
    f, oracle = FUNCTIONS[name]
    a = with_eigenvalues(1.0, 1.0 + 1e-6, 2.0, dtype=torch.complex128)
    # Rounding, at a condition number of 2.
    torch.testing.assert_close(f(a), torch.as_tensor(oracle(a.numpy())).to(a.dtype), rtol=1e-12, atol=1e-12)
    # LAPACK's eigenvalues in single precision err by a few eps.
    torch.testing.assert_close(f(a.to(torch.complex64)), f(a).to(torch.complex64), rtol=1e-5, atol=1e-5)
    assert gradcheck(f, a.requires_grad_(), check_forward_ad=True)
    two = with_eigenvalues(1.0, 1.0, 2.0, dtype=a.dtype).requires_grad_()
    assert gradgradcheck(f, two, fast_mode=True)  # along one random direction


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


# Derivatives along a direction, and the third derivative. -------------------------------------------------------------

DERIVATIVES = {
    "exp": (sym_exp_derivative, scipy.linalg.expm),
    "log": (sym_log_derivative, scipy.linalg.logm),
    "power 0.3": (
        lambda a, e: sym_power_derivative(a, e, 0.3),
        lambda a: scipy.linalg.fractional_matrix_power(a, 0.3),
    ),
    "power -2": (lambda a, e: sym_power_derivative(a, e, -2), lambda a: np.linalg.inv(a @ a)),
}
every_derivative = pytest.mark.parametrize("name", DERIVATIVES)


def directions(k, n=3, dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    return [sym(torch.randn(n, n, generator=g, dtype=dtype)) for _ in range(k)]


def derivative(f, i=0):
    """Of f of real numbers, in the i-th: jacfwd, which refuses complex values."""
    return lambda *t: torch.func.jvp(lambda x: f(*t[:i], x, *t[i + 1 :]), (t[i],), (torch.ones_like(t[i]),))[1]


def block_derivative(oracle, a, *e):
    """D^m f(a)[e_1, ..., e_m]: the last block of the first row of f(block bidiagonal), summed over the orders of e."""
    n, m = len(a), len(e)
    total = 0
    for order in permutations(e):
        block = torch.block_diag(*[a] * (m + 1))
        for i, direction in enumerate(order):
            block[i * n : (i + 1) * n, (i + 1) * n : (i + 2) * n] = direction
        total = total + torch.as_tensor(oracle(block.numpy()))[:n, m * n :]
    return total.to(a.dtype)


@every_derivative
@every_point
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_derivative_along_a_direction(name, point, dtype):
    ours, oracle = DERIVATIVES[name]
    a, (e,) = with_eigenvalues(*EIGENVALUES[point], dtype=dtype), directions(1, dtype=dtype)
    # The oracle's own error at a defective matrix: scipy's logm and powers lose a few digits there.
    torch.testing.assert_close(ours(a, e), block_derivative(oracle, a, e), rtol=1e-9, atol=1e-9)


@every_derivative
@pytest.mark.parametrize("point", ["distinct", "repeated", "identity", "gap 0.001", "gap 1e-06"])
def test_derivative_along_a_direction_is_twice_differentiable(name, point):
    # Through its own two derivatives this reaches the third derivative of the function.
    ours, _ = DERIVATIVES[name]
    a, (e,) = POINTS[point].clone().requires_grad_(), directions(1)
    assert gradcheck(ours, (a, e.requires_grad_()), check_forward_ad=True)
    assert gradgradcheck(ours, (a, e))


@pytest.mark.parametrize("point", ["repeated", "gap 0.001"])
def test_derivative_along_a_complex_direction_is_twice_differentiable(point):
    a, (e,) = with_eigenvalues(*EIGENVALUES[point], dtype=torch.complex128), directions(1, dtype=torch.complex128)
    assert gradcheck(sym_log_derivative, (a.requires_grad_(), e.requires_grad_()), check_forward_ad=True)
    assert gradgradcheck(sym_log_derivative, (a, e), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@every_point
def test_third_derivative_of_exp(point, dtype):
    a, (e, h, k) = with_eigenvalues(*EIGENVALUES[point], dtype=dtype), directions(3, dtype=dtype)
    expected = block_derivative(scipy.linalg.expm, a, e, h, k)
    zero = torch.zeros((), dtype=torch.float64)
    line = lambda r, s, t: sym_exp(a + r * e + s * h + t * k)  # noqa: E731
    forward = derivative(derivative(derivative(line, 0), 1), 2)(zero, zero, zero)
    # Third divided differences are right to eps^(25/36), 1e-11.
    torch.testing.assert_close(forward, expected, rtol=1e-9, atol=1e-9)
    c = directions(1, dtype=dtype)[0].mH
    loss = lambda r, s, t: (line(r, s, t) * c.conj()).real.sum()  # noqa: E731
    for outer in (grad, derivative):
        got = outer(grad(grad(loss, 0), 1), 2)(zero, zero, zero)
        torch.testing.assert_close(got, (expected * c.conj()).real.sum(), rtol=1e-9, atol=1e-9)


@every_function
def test_third_derivative_against_differences_of_the_second(name):
    f, _ = FUNCTIONS[name]
    a, (e, h, k) = POINTS["gap 0.001"], directions(3)
    second = lambda x: jacfwd(jacfwd(lambda s, t: f(x + s * e + t * h), 0), 1)(*torch.zeros(2).double())  # noqa: E731
    step = 1e-4
    expected = (second(a + step * k) - second(a - step * k)) / (2 * step)
    got = torch.func.jvp(second, (a,), (k,))[1]
    # step^2 times the fifth derivative, at most some thousands; the second derivatives err by 1e-13 / step.
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_fourth_derivative_raises_instead_of_being_wrong():
    a, (e,) = POINTS["distinct"], directions(1)
    line = lambda t: sym_exp(a + t * e).square().sum()  # noqa: E731
    with pytest.raises(NotImplementedError, match="fourth"):
        grad(grad(grad(grad(line))))(torch.zeros((), dtype=torch.float64))
    with pytest.raises(NotImplementedError, match="fourth"):
        jacfwd(jacfwd(jacfwd(jacfwd(line))))(torch.zeros((), dtype=torch.float64))


def test_no_derivative_is_computed_of_a_higher_order_than_asked_for(monkeypatch):
    highest = []
    count = lambda w, order, f: highest.append(order) or divided_differences(w, order, f)  # noqa: E731
    monkeypatch.setattr(symmetric, "divided_differences", count)
    a, (e, h) = POINTS["distinct"], directions(2)
    torch.func.jvp(lambda x: sym_log_derivative(a, x), (e,), (h,))
    grad(lambda x: sym_log_derivative(a, x).square().sum())(e)
    assert max(highest) == 1
    torch.func.jvp(grad(lambda x: sym_log(x).square().sum()), (a,), (h,))
    jacfwd(jacfwd(lambda t: sym_log(a + t * h)))(torch.zeros((), dtype=torch.float64))
    assert max(highest) == 2  # memory n^3 and not n^4


@every_derivative
def test_derivative_along_a_direction_batches_and_transforms(name):
    ours, _ = DERIVATIVES[name]
    a, e = torch.stack(list(POINTS.values())), torch.stack(directions(len(POINTS)))
    each = torch.stack([ours(x, y) for x, y in zip(a, e, strict=True)])
    torch.testing.assert_close(ours(a, e), each)
    torch.testing.assert_close(vmap(ours)(a, e), each)
    torch.testing.assert_close(ours(a[0], e), torch.stack([ours(a[0], y) for y in e]))
    loss = lambda x, y: ours(x, y).square().sum()  # noqa: E731
    got, expected = vmap(jacfwd(grad(loss)))(a, e), vmap(jacrev(grad(loss)))(a, e)
    torch.testing.assert_close(got, expected)
    assert got.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_derivatives_of_exp_and_log_are_inverse_over_a_large_spread(dtype):
    # Twelve orders of magnitude, and eigenvectors of the identity, so that eigh leaves the small eigenvalues exact.
    w = torch.logspace(-6, 6, 7, dtype=torch.float64)
    a, (e,) = torch.diag(w).to(dtype), directions(1, n=7, dtype=dtype)
    with mpmath.workdps(40):
        slope = [
            [1 / x if x == y else (mpmath.log(y) - mpmath.log(x)) / (mpmath.mpf(y) - x) for x in w.tolist()]
            for y in w.tolist()
        ]
        expected = torch.tensor([[float(s) for s in row] for row in slope], dtype=torch.float64) * e
    got = sym_log_derivative(a, e)
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(sym_exp_derivative(torch.diag(w.log()).to(dtype), got), e, rtol=1e-12, atol=0)
    # log((1 + t) a + s e) = log(1 + t) + log(a + s e / (1 + t)): the derivative in s is D log(a)[e] / (1 + t).
    line = lambda t: sym_log_derivative((1 + t) * a, e)  # noqa: E731
    third = derivative(derivative(line))(torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(third, 2 * expected, rtol=1e-9, atol=0)


# Divided differences. -------------------------------------------------------------------------------------------------

SCALARS = {
    "exp": (EXP, mpmath.exp),
    "log": (LOG, mpmath.log),
    "sqrt": (SQRT, mpmath.sqrt),
    "inv_sqrt": (INV_SQRT, lambda x: 1 / mpmath.sqrt(x)),
    "power 0.3": (power(0.3), lambda x: x ** mpmath.mpf(0.3)),
    "power -1.7": (power(-1.7), lambda x: x ** mpmath.mpf(-1.7)),
    "power 3": (power(3), lambda x: x**3),
    "power -2": (power(-2), lambda x: x**-2),
    "angle over sine": (ANGLE_OVER_SINE, lambda x: mpmath.acos(x) / mpmath.sqrt(1 - x * x)),
}


def divided_difference(f, x):
    """In 250 digits, with equal points moved 1e-50 apart."""
    with mpmath.workdps(250):
        x = [mpmath.mpf(point) * (1 - (i + 1) * mpmath.mpf(10) ** -50) for i, point in enumerate(x)]
        table = [f(point) for point in x]
        for k in range(1, len(x)):
            table = [(table[i + 1] - table[i]) / (x[i + k] - x[i]) for i in range(len(table) - 1)]
        return float(table[0])


@pytest.mark.parametrize("name", SCALARS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("order", [1, 2, 3])
@settings(max_examples=10, deadline=None)
@given(base=st.floats(0.02, 0.9), exponents=st.lists(st.floats(-12, -0.5), min_size=3, max_size=3), equal=st.booleans())
def test_divided_differences_have_the_digits_that_they_promise(name, dtype, order, base, exponents, equal):
    f, oracle = SCALARS[name]
    gaps = [0.0, 0.0 if equal else 10 ** exponents[0], *(10**e for e in exponents[1:])]
    x = (base * (1 + 0.1 * torch.tensor(gaps[: order + 1], dtype=torch.float64))).to(dtype)
    got = divided_differences(x, order, f)[tuple(range(order + 1))].item()
    expected = divided_difference(oracle, sorted(x.tolist()))
    # Order by order eps, eps^(5/6), eps^(25/36), and a constant; 10 roundings of a power.
    promised = torch.finfo(dtype).eps ** ((5 / 6) ** (order - 1))
    assert abs(got - expected) <= 20 * promised * abs(expected)


def test_divided_differences_of_an_integral_power_at_zero():
    w = torch.tensor([-0.5, 0.0, 0.0, 0.5], dtype=torch.float64)
    second = divided_differences(w, 2, power(3))  # x + y + z
    expected = w[:, None, None] + w[None, :, None] + w[None, None, :]
    torch.testing.assert_close(second, expected, rtol=1e-13, atol=1e-13)
    for p, constant in ((1, 0.0), (2, 0.0), (3, 1.0)):
        third = divided_differences(w, 3, power(p))
        torch.testing.assert_close(third, torch.full_like(third, constant), rtol=1e-11, atol=1e-11)  # eps^(25/36)


@pytest.mark.parametrize("f", [EXP, LOG, SQRT, INV_SQRT, power(0.3), power(3), power(-2)])
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
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)  # eps^(5/6), 1e-13


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
    for a in (torch.randn(2, 3, 3), torch.randn(2, 3, 3, dtype=torch.complex64)):
        torch.testing.assert_close(sym(a) + skew(a), a)
        assert torch.equal(sym(a), sym(a).mH)
        assert torch.equal(skew(a), -skew(a).mH)
    with pytest.raises(ValueError, match=r"a: expected a square matrix .* \(2, 3\)"):
        sym_exp(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"e: expected matrices of the size of a, \(3, 3\), got shape \(2, 2\)"):
        sym_log_derivative(torch.eye(3), torch.eye(2))


@pytest.mark.parametrize("f", [sym_log, lambda a: sym_log_derivative(a, a.square())], ids=["log", "derivative"])
def test_compiles_in_one_graph(f):
    torch._dynamo.reset()
    a = spd(2, 4).requires_grad_()
    loss = torch.compile(lambda x: f(x).square().sum(), fullgraph=True, backend="aot_eager")
    (g,) = torch.autograd.grad(loss(a), a)
    torch.testing.assert_close(g, torch.autograd.grad(f(a).square().sum(), a)[0])


@pytest.mark.slow
def test_compiles_with_inductor():
    a = spd(2, 4)
    torch.testing.assert_close(torch.compile(sym_log, fullgraph=True)(a), sym_log(a))


def _with_eigenvalues(w):
    q = torch.linalg.qr(torch.randn(len(w), len(w), dtype=torch.float64))[0]
    return q * torch.tensor(w, dtype=torch.float64) @ q.T


@pytest.mark.parametrize("w", [[0.1, 0.5, 0.9], [0.3, 0.3, 0.99], [1.0, 1.0, 1 - 1e-9], [0.0, 1.0, 0.5]])
def test_angle_over_sine(w):
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


def test_angle_over_sine_of_a_complex_matrix():
    a = with_eigenvalues(0.3, 0.3, 0.9, dtype=torch.complex128)
    embed = lambda m: torch.cat([torch.cat([m.real, -m.imag], 1), torch.cat([m.imag, m.real], 1)], 0)  # noqa: E731
    # The real form of a complex matrix is a homomorphism; both sides round.
    torch.testing.assert_close(embed(sym_angle_over_sine(a)), sym_angle_over_sine(embed(a)), rtol=1e-12, atol=1e-12)
    assert gradcheck(sym_angle_over_sine, a.requires_grad_(), check_forward_ad=True)


def test_low_rank_expm1():
    from steepest.linalg import low_rank_expm1

    p, q, x = (torch.randn(3, 7, k, dtype=torch.float64) / 3 for k in (4, 4, 2))
    eye = torch.eye(7, dtype=torch.float64)
    assert torch.allclose(low_rank_expm1(p, q, x), (torch.linalg.matrix_exp(p @ q.mT) - eye) @ x, atol=1e-12)
