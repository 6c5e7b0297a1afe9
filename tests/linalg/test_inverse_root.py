"""Inverse roots and second moments, against eigendecompositions in float64 and sums written out."""

import pytest
import torch

from steepest.linalg.inverse_root import by_products, inverse_root
from steepest.linalg.statistics import average_gram

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def gram(*shape, dtype=torch.float64, seed=0):
    y = torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.promote_types(dtype, torch.float64)
    )
    return (y @ y.mH).to(dtype)


def oracle(s, power, eps):
    w, v = torch.linalg.eigh(s.to(torch.promote_types(s.dtype, torch.float64)))
    shift = eps * s.diagonal(dim1=-2, dim2=-1).real.double().mean(-1, keepdim=True)
    return (v * (w.clamp_min(0) + shift).pow(-power).unsqueeze(-2)) @ v.mH


@every_dtype
@pytest.mark.parametrize("power", [0.25, 0.5, 1.0, 0.3], ids=str)
@pytest.mark.parametrize("shape", [(5, 9), (3, 6, 4), (2, 1, 12, 30)], ids=str)
def test_both_ways_agree_with_eigenvectors_in_double(shape, power, dtype):
    s, eps = gram(*shape, dtype=dtype), 1e-2
    expected = oracle(s, power, eps)
    # the condition is at most n / eps, of which a root takes the power; a dozen roundings
    tolerance = 20 * torch.finfo(dtype).eps * s.shape[-1] / eps
    ways = [inverse_root(s, power, eps)] + ([by_products(s, round(1 / power), eps)] if power != 0.3 else [])
    for found in ways:
        assert found.dtype == dtype
        error = torch.linalg.matrix_norm(found - expected) / torch.linalg.matrix_norm(expected)
        assert error.max() < tolerance


def test_products_take_as_many_rounds_as_the_shift_asks_for():
    """A matrix of rank one, whose other eigenvalues are the shift alone, at a shift of 1e-8 in float64."""
    y = torch.randn(8, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    s = y @ y.mH
    expected = oracle(s, 0.25, 1e-8)
    found = by_products(s, 4, 1e-8)
    assert torch.linalg.matrix_norm(found - expected) < 1e-6 * torch.linalg.matrix_norm(expected)  # eps times 1e9 / 8


def test_of_zero_is_the_identity():
    eye = torch.eye(4).expand(2, 4, 4)
    torch.testing.assert_close(inverse_root(torch.zeros(2, 4, 4), 0.25, 1e-6), eye)
    torch.testing.assert_close(by_products(torch.zeros(2, 4, 4), 4, 1e-3), eye, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("beta", [0.9, 1.0])
@pytest.mark.parametrize("batch", [(), (3,), (2, 2)], ids=str)
def test_second_moments(batch, beta, dtype):
    ys = torch.randn((4, *batch, 5, 3), generator=torch.Generator().manual_seed(0), dtype=dtype)
    s, diagonal = torch.zeros(*batch, 5, 5, dtype=dtype), torch.zeros(*batch, 5, dtype=torch.float64)
    expected = torch.zeros_like(s)
    for y in ys:
        assert average_gram(s, y, beta) is s
        average_gram(diagonal, y, beta)
        expected = beta * expected + (1 - beta if beta < 1 else 1) * torch.einsum("...ik,...jk->...ij", y, y.conj())
    torch.testing.assert_close(s, expected)
    torch.testing.assert_close(diagonal, expected.diagonal(dim1=-2, dim2=-1).real)


def test_second_moments_in_strips():
    """Of a side long enough for them: to rounding of sums of five hundred, and Hermitian to the last bit."""
    y = torch.randn(400, 500, generator=torch.Generator().manual_seed(0), dtype=torch.complex128)
    s = average_gram(torch.eye(400, dtype=y.dtype), y, 0.9)
    torch.testing.assert_close(s, 0.9 * torch.eye(400, dtype=y.dtype) + 0.1 * y @ y.mH, rtol=1e-12, atol=1e-11)
    assert torch.equal(s, s.mH)


def test_what_overflows_when_squared_leaves_no_trace():
    s = torch.eye(2).repeat(2, 1, 1)
    y = torch.ones(2, 2, 3)
    y[1] *= 1e30
    average_gram(s, y, 0.5)
    torch.testing.assert_close(s[0], torch.tensor([[2.0, 1.5], [1.5, 2.0]]))
    torch.testing.assert_close(s[1], torch.eye(2) / 2)
