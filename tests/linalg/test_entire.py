"""Cosine and sine of a root against scipy and against their series, and their derivatives."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import hessian, jacrev, jvp, vmap

from steepest.linalg.entire import sym_versine_sinc, versine_sinc
from steepest.linalg.reorthonormalize import reorthonormalize


def gram(*shape, seed=0, dtype=torch.float64, size=1.0):
    a = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return size**2 * a.mH @ a / a.shape[-2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_matrix_functions_agree_with_scipy(dtype, size):
    s = gram(2, 3, 6, 4, dtype=dtype, size=size)
    versine, sinc = sym_versine_sinc(s)
    root = np.stack([scipy.linalg.sqrtm(m) for m in s.flatten(0, 1).numpy()])
    cosine = np.stack([scipy.linalg.cosm(r) for r in root])
    sine = np.stack([scipy.linalg.solve(r, scipy.linalg.sinm(r)) for r in root])
    # eps times |s|, up to 3e3, and the condition of the division by the root
    tolerance = 1e-12 * max(1.0, size**2)
    torch.testing.assert_close(
        torch.eye(4) - versine.flatten(0, 1), torch.tensor(cosine).to(dtype), rtol=0, atol=tolerance
    )
    torch.testing.assert_close(sinc.flatten(0, 1), torch.tensor(sine).to(dtype), rtol=0, atol=tolerance)


def test_entries_agree_with_numpy_on_both_sides_of_the_series():
    s = torch.tensor([0.0, 1e-20, 1e-6, 3.999, 4.001, 100.0], dtype=torch.float64)
    versine, sinc = versine_sinc(s)
    torch.testing.assert_close(versine, 2 * torch.sin(s.sqrt() / 2) ** 2, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(sinc, torch.sinc(s.sqrt() / math.pi), rtol=1e-14, atol=1e-15)


def test_pythagoras_in_single_precision():
    s = gram(50, 8, 8, dtype=torch.float32)
    versine, sinc = sym_versine_sinc(s)
    cosine = torch.eye(8) - versine
    # some twenty products of matrices of norm one
    torch.testing.assert_close(cosine @ cosine + sinc @ s @ sinc, torch.eye(8).expand(50, 8, 8), rtol=0, atol=3e-6)


@pytest.mark.parametrize("size", [0.0, 0.3, 5.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_derivatives(size, dtype):
    v = size * torch.randn(4, 2, dtype=dtype)
    if size > 1:
        v = v @ torch.ones(2, 2, dtype=dtype)  # rank one: a repeated singular value, zero
    v.requires_grad_()
    f = lambda v: sym_versine_sinc(v.mH @ v)  # noqa: E731
    assert gradcheck(f, v)
    assert gradgradcheck(f, v)


def test_entrywise_derivatives():
    s = torch.tensor([0.0, 0.5, 3.9, 4.1, 50.0], dtype=torch.float64, requires_grad=True)
    gap = torch.full_like(s, 1e-2)
    assert gradcheck(versine_sinc, (s + gap,), check_forward_ad=True)
    assert gradgradcheck(versine_sinc, (s + gap,))
    first, second = jvp(
        lambda t: versine_sinc(t)[1], (torch.zeros((), dtype=torch.float64),), (torch.ones(()).double(),)
    )
    torch.testing.assert_close((first, second), (torch.tensor(1.0).double(), torch.tensor(-1 / 6).double()))


def test_functional_transforms():
    s = torch.cat([gram(3, 5, 3), gram(3, 5, 3, size=20.0)]).unflatten(0, (2, 3))
    loss = lambda s: sum(t.square().sum() for t in sym_versine_sinc(s))  # noqa: E731
    torch.testing.assert_close(vmap(vmap(lambda s: sym_versine_sinc(s)[1]))(s), sym_versine_sinc(s)[1])
    one = torch.stack([torch.stack([jacrev(jacrev(loss))(t) for t in row]) for row in s])
    torch.testing.assert_close(vmap(vmap(hessian(loss)))(s), one)


def test_reorthonormalize_squares_the_defect():
    x = torch.linalg.qr(torch.randn(3, 7, 3, dtype=torch.complex128)).Q
    y = x + 1e-5 * torch.randn_like(x)
    defect = lambda y: (y.mH @ y - torch.eye(3)).abs().max().item()  # noqa: E731
    assert defect(y) > 1e-6
    assert defect(reorthonormalize(y)) < 2 * defect(y) ** 2 + 1e-15
