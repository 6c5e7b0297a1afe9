"""QR with positive diagonal, Cholesky-QR, and the triangular inverse."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jacfwd, jacrev, vmap

from steepest.linalg import cholesky_qr, qr, triangular_inverse

SHAPES = [(7, 3), (4, 4), (5, 1), (2, 3, 8, 2), (200, 20), (40, 30), (3, 200, 20)]


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def tangent_step(*shape, dtype=torch.float64):
    """x + xi: x orthonormal, xi tangent to the Stiefel manifold, spectral norm about 1."""
    x = torch.linalg.qr(randn(*shape)).Q
    z = randn(*shape, seed=1)
    inward = x.mT @ z
    xi = z - x @ (0.5 * (inward + inward.mT))
    return (x + xi / torch.linalg.matrix_norm(xi, 2)[..., None, None]).to(dtype)


def complex_step(*shape):
    """The complex matrix with a real and an imaginary tangent step, well conditioned."""
    return torch.complex(tangent_step(*shape), 0.5 * randn(*shape, seed=2) / shape[-2] ** 0.5)


def orthonormality(q):
    return (q.mH @ q - torch.eye(q.shape[-1], dtype=q.dtype)).abs().max().item()


@pytest.mark.parametrize("shape", [*SHAPES, (3, 5), (2, 3, 7)])
def test_qr(shape):
    y = randn(*shape)
    q, r = qr(y)
    torch.testing.assert_close(q @ r, y)
    assert orthonormality(q) < 1e-14  # a few eps
    assert torch.equal(r, r.triu())
    assert (r.diagonal(dim1=-2, dim2=-1) >= 0).all()


@pytest.mark.parametrize("shape", [*SHAPES, (3, 5), (2, 3, 7)])
def test_complex_qr(shape):
    y = torch.complex(randn(*shape), randn(*shape, seed=1))
    q, r = qr(y)
    torch.testing.assert_close(q @ r, y)
    assert orthonormality(q) < 1e-14  # a few eps
    assert torch.equal(r, r.triu())
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    assert not diagonal.imag.any()
    assert (diagonal.real > 0).all()
    # Unique: any unitary change of basis on the left passes through.
    phases = torch.exp(1j * randn(shape[-2], seed=3)).diag()
    torch.testing.assert_close(qr(phases @ y)[0], phases @ q)
    torch.testing.assert_close(qr(phases @ y)[1], r)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.complex128, 1e-14), (torch.complex64, 5e-6)])
def test_complex_cholesky_qr_is_qr(shape, dtype, tolerance):
    y = complex_step(*shape).to(dtype)
    q = cholesky_qr(y)
    assert q.dtype == dtype
    assert orthonormality(q) < 2 * tolerance  # a few eps times the square of the condition, below 3
    torch.testing.assert_close(q, qr(y)[0], atol=40 * tolerance, rtol=0)


def test_qr_of_zero_keeps_the_basis_and_the_sign_is_never_zero():
    q, r = qr(torch.zeros(4, 2))
    assert orthonormality(q) == 0
    assert not r.any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 5e-6)])
def test_cholesky_qr_of_a_tangent_step_is_qr(shape, dtype, tolerance):
    y = tangent_step(*shape, dtype=dtype)
    q = cholesky_qr(y)
    assert orthonormality(q) < tolerance  # a few eps, as Householder: the Gram matrix is I + xi^T xi
    torch.testing.assert_close(q, qr(y)[0], atol=20 * tolerance, rtol=0)


@pytest.mark.parametrize("shape", [(6, 3), (4, 4), (2, 5, 2)])
def test_derivatives(shape):
    y = tangent_step(*shape).requires_grad_()
    for f in (cholesky_qr, qr):
        assert gradcheck(f, y, check_forward_ad=True)
    assert gradgradcheck(cholesky_qr, y)
    # Two independent ways to one derivative.
    weight = randn(*shape, seed=2)
    expected = torch.autograd.grad((qr(y)[0] * weight).sum(), y)[0]
    torch.testing.assert_close(torch.autograd.grad((cholesky_qr(y) * weight).sum(), y)[0], expected)


@pytest.mark.parametrize("y", [
    tangent_step(4, 2), tangent_step(3, 3), torch.linalg.qr(randn(4, 2)).Q, torch.eye(4, 2).double(),
    complex_step(4, 2), complex_step(3, 3), torch.linalg.qr(complex_step(4, 2)).Q, torch.eye(3, 2) + 0j,
], ids=lambda y: f"{'complex' if y.is_complex() else 'real'} {tuple(y.shape)}")  # fmt: skip
@pytest.mark.parametrize("f", [cholesky_qr, qr])
def test_both_derivatives(f, y):
    y = y.clone().to(torch.complex128 if y.is_complex() else torch.float64).requires_grad_()
    assert gradcheck(f, y, check_forward_ad=True)
    assert gradgradcheck(f, y, check_fwd_over_rev=True, fast_mode=True)


def test_second_derivatives_through_the_inverse():
    y = tangent_step(72, 18).requires_grad_()  # so tall that it takes the inverse
    assert gradgradcheck(cholesky_qr, y, fast_mode=True)
    y = complex_step(72, 18).requires_grad_()
    assert gradcheck(cholesky_qr, y, fast_mode=True, check_forward_ad=True)


def test_derivative_of_wide_qr():
    for y in (randn(2, 4), torch.complex(randn(2, 4), randn(2, 4, seed=1))):
        assert gradcheck(qr, y.requires_grad_(), check_forward_ad=True)


def test_functional_transforms():
    y = tangent_step(3, 40, 18)  # 18 columns: alone it takes the inverse, in a batch the triangular solve
    torch.testing.assert_close(vmap(cholesky_qr)(y), cholesky_qr(y))
    loss = lambda y: cholesky_qr(y).pow(3).sum()  # noqa: E731
    torch.testing.assert_close(vmap(grad(loss))(y)[1], grad(loss)(y[1]))
    small = tangent_step(4, 2)
    torch.testing.assert_close(jacfwd(grad(loss))(small), jacrev(grad(loss))(small))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_runs_in_float32(dtype):
    y = tangent_step(20, 4).to(dtype)
    q, r = qr(y)
    assert q.dtype == r.dtype == cholesky_qr(y).dtype == dtype
    assert orthonormality(cholesky_qr(y).double()) < 4 * torch.finfo(dtype).eps  # one rounding per entry
    assert triangular_inverse(torch.eye(3, dtype=dtype)).dtype == dtype


def test_triangular_inverse():
    lower = torch.linalg.cholesky(torch.eye(5) + randn(2, 3, 5, 5).square().mean() * torch.ones(5, 5)).expand(
        2, 3, 5, 5
    )
    expected = torch.linalg.inv(lower.double())
    torch.testing.assert_close(triangular_inverse(lower.double()), expected)
    above = torch.full((5, 5), 9.0).triu(1)
    torch.testing.assert_close(triangular_inverse(lower.double() + above), expected)  # not read
    assert gradcheck(triangular_inverse, (lower[0, 0].double().clone().requires_grad_(),))
    lower = (torch.complex(randn(2, 4, 4), randn(2, 4, 4, seed=1)) + 4 * torch.eye(4)).tril()
    torch.testing.assert_close(triangular_inverse(lower), torch.linalg.inv(lower))
    assert gradcheck(triangular_inverse, lower.requires_grad_(), check_forward_ad=True)
    assert gradgradcheck(triangular_inverse, lower, fast_mode=True)
    with pytest.raises(ValueError, match="lower: expected a square"):
        triangular_inverse(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="y: expected a matrix"):
        cholesky_qr(torch.zeros(3))


def test_compiles_in_one_graph():
    y = tangent_step(40, 18)
    torch.testing.assert_close(torch.compile(cholesky_qr, fullgraph=True, backend="aot_eager")(y), cholesky_qr(y))
