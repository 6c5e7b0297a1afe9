"""Symmetric polynomials of a matrix against sums over its eigenvalues, in float64."""

import itertools
import math

import pytest
import torch

from steepest.linalg.symmetric_polynomials import symmetric_preconditioner, symmetric_preconditioner_diagonal


def elementary(values, degree):
    """e_t of a list of numbers, by its definition."""
    return sum(math.prod(chosen) for chosen in itertools.combinations(values, degree))


def oracle(b, degree):
    """V diag(e_t(without i)) V^H, scaled to tr(B P) = tr(B)."""
    w, v = torch.linalg.eigh(b)
    values = w.tolist()
    e = torch.tensor([elementary(values[:i] + values[i + 1 :], degree) for i in range(len(values))], dtype=w.dtype)
    return (v * (e * w.sum() / (w @ e))) @ v.mH


def with_spectrum(values, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=dtype)).Q
    return (q * torch.tensor(values, dtype=q.real.dtype)) @ q.mH


SPECTRA = [[5.0, 1.0, 0.3, 0.1, 0.02], [100.0, 99.0, 1.0, 0.9, 0.8, 0.7], [1.0] * 4, [3.0, 1.0], [2.0]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("degree", range(5))
@pytest.mark.parametrize("spectrum", SPECTRA, ids=len)
def test_against_eigenvalues(spectrum, degree, dtype):
    b = with_spectrum(spectrum, dtype)
    expected = oracle(b, min(degree, len(spectrum) - 1))
    # the recursion loses digits of tr(B) / tr(B P), at most 1e4 here, and it gives up beyond 1e-6
    torch.testing.assert_close(symmetric_preconditioner(b, degree), expected, rtol=0, atol=1e-6 * expected.norm())


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_the_largest_degree_is_the_inverse(degree):
    b = with_spectrum([4.0, 2.0, 1.0, 0.5][: degree + 1])
    p = symmetric_preconditioner(b, degree)
    torch.testing.assert_close(
        p @ b, torch.eye(degree + 1, dtype=b.dtype) * b.trace() / (degree + 1), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_condition_number(degree):
    """The formula, and the cut: with three eigenvalues far above the rest it falls from 3e4 to 3e4 / 2, to 3e4 2 / 11,
    and, the three gone, to the sum of the rest over its smallest, 29."""
    spectrum = [3e3, 2e3, 1e3, 1.0, 0.8, 0.5, 0.3, 0.2, 0.1]
    b = with_spectrum(spectrum)
    pb = torch.linalg.eigvals(symmetric_preconditioner(b, degree) @ b).real.sort().values
    found = (pb[-1] / pb[0]).item()
    theory = 3e3 * elementary(spectrum[1:], degree) / (0.1 * elementary(spectrum[:-1], degree))
    assert found == pytest.approx(theory, rel=1e-5)  # 1e-6 of the recursion, on the smallest eigenvalue
    assert found == pytest.approx({1: 15000, 2: 60000 / 11, 3: 29}[degree], rel=1e-2)  # 1 / 100: 2.9 beside 1e3


def test_scale_and_batch():
    spectra = [[5.0, 1.0, 0.3, 0.1], [1e-3, 1e-4, 1e-4, 1e-5], [0.0] * 4, [1.0, 0.0, 0.0, 0.0]]
    b = torch.stack([with_spectrum(s, seed=i) for i, s in enumerate(spectra)])
    p = symmetric_preconditioner(b.reshape(2, 2, 4, 4), 3).reshape(4, 4, 4)
    for one, alone in zip(p[:3], b[:3], strict=True):
        torch.testing.assert_close(one, symmetric_preconditioner(alone, 3), rtol=1e-9, atol=0)
    torch.testing.assert_close(p[2], torch.eye(4, dtype=b.dtype))
    assert p.isfinite().all()
    for scale in (1e-150, 1e150):  # far beyond where the minors themselves under- or overflow
        torch.testing.assert_close(symmetric_preconditioner(b[:2] * scale, 3), p[:2], rtol=1e-9, atol=0)


@pytest.mark.parametrize("rank", [1, 2])
def test_degrees_beyond_the_rank_change_nothing(rank):
    b = with_spectrum([2.0, 1.0][:rank] + [0.0] * (5 - rank))
    p = symmetric_preconditioner(b, rank - 1)
    for degree in range(rank, 5):
        torch.testing.assert_close(symmetric_preconditioner(b, degree), p, rtol=0, atol=1e-12)


def test_diagonal_and_single_precision():
    d = torch.tensor([[4.0, 1.0, 0.5, 0.1], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 2.0, 3.0]])
    full = symmetric_preconditioner(d.diag_embed(), 2)
    assert full.dtype == torch.float32
    torch.testing.assert_close(symmetric_preconditioner_diagonal(d, 2).diag_embed(), full)
