"""The exponential of a product of thin matrices, and torch's own exponential, which manifolds differentiate."""

import math
from fractions import Fraction
from itertools import zip_longest

import pytest
import scipy.linalg
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jvp

from steepest.linalg import expm, low_rank_expm1
from steepest.linalg.entire import sym_versine_sinc
from steepest.linalg.expm import DEGREE_8, DEGREE_12, DEGREE_18, taylor_exp

DTYPES = [torch.float64, torch.complex128]


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def factors(*batch, n=6, k=2, m=3, dtype=torch.float64):
    return [randn(*batch, n, c, seed=i, dtype=dtype) for i, c in enumerate((k, k, m))]


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_the_exponential_of_the_product(batch, dtype):
    p, q, x = factors(*batch, dtype=dtype)
    expected = torch.linalg.matrix_exp(p @ q.mH) @ x - x
    torch.testing.assert_close(low_rank_expm1(p, q, x), expected, rtol=1e-11, atol=1e-11)  # |expm| up to 1e3


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_products_keep_their_digits(dtype):
    p, q, x = factors(dtype=dtype)
    got = low_rank_expm1(1e-12 * p, q, x)
    torch.testing.assert_close(got, 1e-12 * p @ q.mH @ x, rtol=1e-10, atol=0)  # the next term is 1e-12 smaller


@pytest.mark.parametrize("dtype", DTYPES)
def test_derivatives(dtype):
    p, q, x = (0.5 * t.requires_grad_() for t in factors(n=3, k=1, m=2, dtype=dtype))
    assert gradcheck(low_rank_expm1, (p, q, x), check_forward_ad=True)
    assert gradgradcheck(low_rank_expm1, (p, q, x), check_fwd_over_rev=True, fast_mode=True)
    zero = torch.zeros_like(p).requires_grad_()
    assert gradcheck(low_rank_expm1, (zero, q, x), check_forward_ad=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
def test_derivatives_of_matrix_exp(dtype, scale):
    a = (scale * randn(3, 3, dtype=dtype)).requires_grad_()
    assert gradcheck(torch.linalg.matrix_exp, a, check_forward_ad=True)
    assert gradgradcheck(torch.linalg.matrix_exp, a, check_fwd_over_rev=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_derivatives_of_matrix_exp_at_zero_in_few_digits(dtype):
    a = torch.zeros(5, 5, dtype=dtype, requires_grad=True)
    e = randn(5, 5, dtype=dtype)
    (g,) = torch.autograd.grad((torch.linalg.matrix_exp(a) * e.conj()).real.sum(), a, create_graph=True)
    torch.testing.assert_close(g, e)  # D exp(0) is the identity
    (h,) = torch.autograd.grad((g * e.conj()).real.sum(), a)
    torch.testing.assert_close(h, second(e))
    torch.testing.assert_close(jvp(torch.linalg.matrix_exp, (a.detach(),), (e,))[1], e)


def second(e):
    """Gradient at H = 0 of Re<D exp(H)[E], E>, as Re<(H E + E H) / 2, E>."""
    return (e @ e.mH + e.mH @ e) / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
@pytest.mark.parametrize("size", [0.0, 1e-3, 0.03, 0.5, 3.0])
def test_expm_of_a_single_matrix_is_exact_at_every_size(size, dtype):
    a = torch.randn(4, 4, dtype=dtype)
    a = a * (size / torch.linalg.matrix_norm(a, 2))
    exact = torch.as_tensor(scipy.linalg.expm(a.to(torch.promote_types(dtype, torch.float64)).numpy()))
    error = (expm(a) - exact).abs().max() / exact.abs().max()
    assert error < 20 * torch.finfo(dtype).eps  # one scaling and a dozen products


def times(a, b):
    """Polynomials as lists of coefficients."""
    out = [Fraction(0)] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            out[i + j] += x * y
    return out


def plus(a, b):
    return [x + y for x, y in zip_longest(a, b, fillvalue=Fraction(0))]


def is_taylors(value, degree):
    """Exactly, in rational arithmetic with the coefficients as printed, but for their rounding."""
    for k, c in enumerate(value):
        expected = Fraction(1, math.factorial(k)) if k <= degree else 0
        assert abs(c - expected) < 2e-15 / math.factorial(min(k, degree))


def test_the_polynomial_of_degree_18_is_taylors():
    b1, b2, b3, b4, b5 = ([*map(Fraction, c[:4]), 0, 0, Fraction(c[4])] for c in DEGREE_18)
    a9 = plus(times(b1, b5), b4)
    is_taylors(plus(b2, times(plus(b3, a9), a9)), 18)


def test_the_polynomial_of_degree_12_is_taylors():
    b1, b2, b3, b4 = ([*map(Fraction, c)] for c in DEGREE_12)
    a6 = plus(b3, times(b4, b4))
    is_taylors(plus(b1, times(plus(b2, a6), a6)), 12)


def test_the_polynomial_of_degree_8_is_taylors():
    x1, x2, x3, x4, x5, x6, x7, y2 = map(Fraction, DEGREE_8)
    a4 = [0, 0, 0, x1, x2]
    value = times(plus([0, 0, x3], a4), plus([x4, x5, x6], times([x7], a4)))
    is_taylors(plus([1, 1, y2], value), 8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex128])
@pytest.mark.parametrize("size", [0, 1e-8, 0.01, 0.1, 1.0, 1.1, 5.0, 40.0])  # of degree 8, 18, squared
def test_products_exponentiate(size, dtype):
    """Of symmetric, skew and general matrices, small and large, to a few eps times the norm."""
    g = randn(3, 12, 12, dtype=torch.float64 if dtype == torch.float32 else dtype)
    for a in (g + g.mH, g - g.mH, g):
        a = (size * a / torch.linalg.matrix_norm(a, 2, keepdim=True)).to(dtype)
        wide = a.double() if dtype == torch.float32 else a
        expected = torch.tensor(scipy.linalg.expm(wide.numpy()))
        error = torch.linalg.matrix_norm(taylor_exp(a).to(expected) - expected)
        eps = torch.finfo(dtype).eps
        assert (error <= 40 * eps * max(1, size) * torch.linalg.matrix_norm(expected)).all()
        assert (taylor_exp(a[0]) - expected[0]).abs().max() <= 40 * eps * max(1, size) * expected[0].abs().max()


def test_what_is_not_finite_stays_so():
    """And leaves the others alone."""
    a = 10 * randn(3, 2, 2)
    a[1] = torch.nan
    got = taylor_exp(a)
    assert got[1].isnan().all()
    torch.testing.assert_close(got[::2], torch.linalg.matrix_exp(a[::2]), rtol=1e-12, atol=0)
    s = a @ a.mT
    for value, expected in zip(
        sym_versine_sinc(s[:, :1, :1].expand(3, 40, 40)),
        sym_versine_sinc(s[::2, :1, :1].expand(2, 40, 40)),
        strict=True,
    ):
        torch.testing.assert_close(value[::2], expected, rtol=1e-12, atol=1e-12)
