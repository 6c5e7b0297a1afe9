"""Orthonormal bases of what a tall matrix spans, and the discrete cosine transform."""

import math

import pytest
import scipy.fft
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from steepest.linalg.basis import orthonormal_basis
from steepest.linalg.dct import dct, dct_matrix
from steepest.linalg.precision import double

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
sides = st.integers(1, 9)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_shape = pytest.mark.parametrize("shape", [(7, 3), (4, 4), (5, 1), (2, 3, 8, 2), (60, 20)], ids=str)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_condition(*shape, condition, dtype):
    """Singular values from 1 down to 1 / condition, evenly on a logarithmic scale."""
    wide = torch.promote_types(dtype, torch.float64)
    *batch, n, r = shape
    u, v = (torch.linalg.qr(randn(*batch, k, r, seed=k, dtype=wide))[0] for k in (n, r))
    s = torch.logspace(0, -math.log10(condition), r, dtype=torch.float64).to(wide)
    return ((u * s) @ v.mH).to(dtype)


def assert_orthonormal(q):
    """20 eps: some roundings to each of the products."""
    gram = q.mH @ q
    eye = torch.eye(q.shape[-1], dtype=q.dtype).expand_as(gram)
    torch.testing.assert_close(gram, eye, rtol=0, atol=20 * torch.finfo(q.dtype).eps)


@every_dtype
@every_shape
@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6, 1e12])
def test_orthonormal_and_of_the_same_span(shape, condition, dtype):
    y = with_condition(*shape, condition=condition, dtype=dtype)
    q = orthonormal_basis(y)
    assert (q.shape, q.dtype) == (y.shape, y.dtype)
    assert_orthonormal(q)
    # Nothing of y is outside, relative to its columns, which have about the same length.
    outside = y - q @ (q.mH @ y)
    assert outside.abs().max() < 20 * torch.finfo(dtype).eps * torch.linalg.vector_norm(y, dim=-2).max()


@every_dtype
@given(n=sides, r=sides, rank=st.integers(0, 9), power=st.integers(-30, 30), seed=st.integers(0, 999))
@settings(max_examples=25)
def test_any_rank_and_any_size(dtype, n, r, rank, power, seed):
    """Zero and repeated columns, and sizes at which squares in float32 would be zero or infinite."""
    r, rank = min(n, r), min(n, r, rank)
    y = randn(n, rank, seed=seed, dtype=dtype) @ randn(rank, r, seed=seed + 1, dtype=dtype) * 10.0**power
    q = orthonormal_basis(y)
    assert_orthonormal(q)
    outside, size = y - q @ (q.mH @ y), torch.linalg.vector_norm(double(y), dim=-2).max()
    assert outside.abs().max() <= 20 * torch.finfo(dtype).eps * size


@every_dtype
def test_columns_of_different_sizes_are_as_good(dtype):
    y = randn(9, 4, dtype=dtype) * torch.tensor([1e-20, 1.0, 1e15, 1e-6])
    q = orthonormal_basis(y)
    assert_orthonormal(q)
    unit = y / torch.linalg.vector_norm(y, dim=-2)
    # 100 eps, as the columns' own condition is some tens
    assert (unit - q @ (q.mH @ unit)).abs().max() < 100 * torch.finfo(dtype).eps


@every_dtype
def test_a_batch_is_its_elements(dtype):
    """Also of a good and a bad one, which take another way together."""
    good, bad = randn(8, 3, dtype=dtype), with_condition(8, 3, condition=1e12, dtype=dtype)
    whole = orthonormal_basis(torch.stack([good, bad, 0 * good]))
    assert_orthonormal(whole)
    one = orthonormal_basis(good)
    # the span is the same, the columns' signs need not be; 100 eps, as the columns' own condition is some tens
    assert (whole[0] @ whole[0].mH - one @ one.mH).abs().max() < 100 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_in_single(dtype):
    q = orthonormal_basis(randn(20, 4).to(dtype))
    assert q.dtype == dtype
    gram = q.double().T @ q.double()
    assert (gram - torch.eye(4)).abs().max() < 4 * torch.finfo(dtype).eps  # one rounding to an entry


def test_a_vector_is_refused():
    with pytest.raises(ValueError, match="y: expected a matrix"):
        orthonormal_basis(torch.ones(3))


# The discrete cosine transform. ---------------------------------------------------------------------------------------

LENGTHS = [1, 2, 3, 4, 5, 8, 17, 64, 101]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
def test_dct_is_that_of_scipy(n, batch, dtype):
    x = randn(*batch, n, dtype=dtype)
    got, wide = dct(x), x.to(torch.promote_types(dtype, torch.float64))
    assert (got.shape, got.dtype) == (x.shape, x.dtype)
    real = [wide.real, wide.imag] if x.is_complex() else [wide]
    expected = [torch.as_tensor(scipy.fft.dct(part.numpy(), norm="ortho")) for part in real]
    expected = torch.complex(*expected) if x.is_complex() else expected[0]
    # log n butterflies of entries of about one
    torch.testing.assert_close(got.to(wide.dtype), expected, rtol=0, atol=20 * torch.finfo(dtype).eps)


@every_dtype
@pytest.mark.parametrize("n", LENGTHS)
def test_matrix_is_orthogonal_and_that_of_the_transform(n, dtype):
    """Column k is k half waves, from the slowest to the fastest."""
    d = dct_matrix(n, torch.empty(0, dtype=dtype))
    assert d.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(d.mH @ d, torch.eye(n, dtype=dtype), rtol=0, atol=10 * eps)  # a sum of n roundings
    x = randn(3, n, dtype=dtype)
    torch.testing.assert_close(dct(x), x @ d, rtol=0, atol=40 * eps)  # the same, at entries of up to three
    changes = (d.real[1:] * d.real[:-1] < 0).sum(0)
    assert changes.tolist() == list(range(n))


def test_transform_of_any_layout():
    """Transposed, and conjugated but not yet computed."""
    x = randn(5, 4, dtype=torch.complex128)
    for y in (x.T, x.mH, x[:, ::2], randn(5, 4).T):
        torch.testing.assert_close(dct(y), dct(y.resolve_conj().contiguous()), rtol=0, atol=1e-14)  # rounding


def test_one_matrix_is_kept_and_may_be_differentiated_around():
    like = torch.empty(0, dtype=torch.float64)
    assert dct_matrix(6, like) is dct_matrix(6, like)
    assert dct_matrix(6, like) is not dct_matrix(6, like.float())
    assert gradcheck(dct, randn(2, 5).requires_grad_())
    x = randn(2, 5).requires_grad_()
    dct(x).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())  # the transform keeps lengths
    with torch.inference_mode():
        dct_matrix(7, like)
    (dct_matrix(7, like) * randn(7, 7).requires_grad_()).sum().backward()
