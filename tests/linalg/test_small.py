"""Closed forms for large batches of very small matrices, against LAPACK and the definitions, at hard spectra."""

import pytest
import torch

from steepest.linalg import eigen, products, sym_exp, sym_log, sym_sqrt
from steepest.linalg.dispatch import SMALL, is_small_batch

SPECTRA = [
    (1, 1, 1),
    (1, 1 + 1e-9, 2),
    (1, 1 + 1e-15, 1),
    (1, 2, 2 + 1e-10),
    (1e-12, 1e-12, 1),
    (1e-8, 1, 1),
    (1e-16, 1e-8, 1),
    (-1, 0, 1),
    (-1, 1, 1),
    (0, 0, 0),
    (0, 0, 1),
    (1, 1 + 1e-5, 1 + 2e-5),
    (1, 2, 3),
    (1e15, 2e15, 1e14),
    (1e-15, 1e-16, 2e-15),
]
SPECIAL = [torch.eye(3), torch.ones(3, 3), torch.zeros(3, 3), torch.eye(3).flip(0), torch.diag(torch.arange(3.0))]


def hard(n, dtype, count=120):
    """Symmetric matrices of all these spectra, and of random ones."""
    generator = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(count, n, n, dtype=torch.float64, generator=generator))[0]
    cases = [(q * torch.tensor(w[-n:], dtype=torch.float64)) @ q.mT for w in SPECTRA]
    cases += [m[:n, :n].double().expand(count, n, n) for m in SPECIAL]
    cases += [torch.randn(count, n, n, dtype=torch.float64, generator=generator)]
    a = torch.stack(cases)
    return (a + a.mT).div(2).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n", SMALL)
def test_eigenvalues_and_vectors(n, dtype):
    """A backward error of a few eps: that of LAPACK on the same matrices is up to 15."""
    s = hard(n, dtype)
    assert is_small_batch(s)
    w, v = eigen.eigh(s)
    wide, scale = s.double(), s.double().abs().amax((-2, -1), keepdim=True).clamp_min(1e-300)
    eps = torch.finfo(dtype).eps
    assert (w[..., 1:] >= w[..., :-1]).all()
    assert ((v.double() * w.double().unsqueeze(-2)) @ v.double().mT - wide).div(scale).abs().max() < 12 * eps
    assert (v.double().mT @ v.double() - torch.eye(n)).abs().max() < 8 * eps
    assert (w - torch.linalg.eigvalsh(wide)).div(scale.squeeze(-1)).abs().max() < 20 * eps
    assert (eigen.eigvalsh(s) == w).all()


@pytest.mark.parametrize("n", SMALL)
def test_no_overflow(n):
    s = hard(n, torch.float64, 2400)[-1]
    for scale in (1e150, 1e-150, 1e300):
        w, v = eigen.eigh(scale * s)
        torch.testing.assert_close(w / scale, eigen.eigh(s)[0], rtol=1e-13, atol=1e-13)
        assert v.isfinite().all()


@pytest.mark.parametrize("n", SMALL)
def test_reads_the_lower_triangle(n):
    s = hard(n, torch.float64, 2400)[-1]
    w, v = eigen.eigh(s)
    lower = s.tril() + torch.full_like(s, torch.nan).triu(1)
    for got, expected in zip(eigen.eigh(lower), (w, v), strict=True):
        assert (got == expected).all()


@pytest.mark.parametrize("n", SMALL)
def test_nan_stays_in_its_matrix(n):
    s = hard(n, torch.float64, 2400)[-1].clone()
    s[7] = torch.nan
    w, _ = eigen.eigh(s)
    assert w[7].isnan().all()
    assert w[:7].isfinite().all()
    assert w[8:].isfinite().all()


@pytest.mark.parametrize("n", SMALL)
def test_products_and_factors(n):
    count = max(SMALL.values())
    a, b = (torch.randn(2, count, n, n, dtype=torch.float64) for _ in range(2))
    x = a @ a.mT + 0.1 * torch.eye(n)
    assert is_small_batch(x)
    close = {"rtol": 1e-13, "atol": 1e-13}
    torch.testing.assert_close(products.product(a, b), a @ b, **close)
    torch.testing.assert_close(products.add_product(x, a, b, 0.5), x + 0.5 * a @ b, **close)
    L = products.cholesky(x)
    torch.testing.assert_close(L, torch.linalg.cholesky(x), rtol=1e-11, atol=1e-11)  # condition up to 1e3
    torch.testing.assert_close(products.divide(a, L) @ L.mT, a, rtol=1e-11, atol=1e-11)
    wide = torch.cat([a, b], -1)
    torch.testing.assert_close(products.product(wide, wide.mT), a @ a.mT + b @ b.mT, **close)


@pytest.mark.parametrize("n", SMALL)
def test_cholesky_of_what_is_not_definite_is_nan(n):
    x = torch.eye(n, dtype=torch.float64).repeat(2400, 1, 1)
    x[3, -1, -1], x[5, 0, 0], x[9, -1, -1] = -1, -1, 0
    L = products.cholesky(x)
    assert L.isnan().all((-2, -1)).nonzero().flatten().tolist() == [3, 5, 9]
    assert (L.isnan().any((-2, -1)) == L.isnan().all((-2, -1))).all()


@pytest.mark.parametrize("function", [sym_exp, sym_log, sym_sqrt])
@pytest.mark.parametrize("n", SMALL)
def test_functions_agree_with_lapack(function, n):
    a = torch.randn(2400, n, n, dtype=torch.float64)
    x = a @ a.mT + 0.1 * torch.eye(n)
    w, v = torch.linalg.eigh(x)
    f = {sym_exp: torch.exp, sym_log: torch.log, sym_sqrt: torch.sqrt}[function]
    torch.testing.assert_close(function(x), (v * f(w).unsqueeze(-2)) @ v.mT, rtol=1e-11, atol=1e-11)
