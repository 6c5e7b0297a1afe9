"""The exponential of a product of thin matrices, and torch's own exponential, which manifolds differentiate."""

import pytest
import scipy.linalg
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jvp

from steepest.linalg import expm, low_rank_expm1

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
