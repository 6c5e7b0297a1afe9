"""Singular values bounded softly, against the formula by SVD in float64."""

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from steepest.linalg import polar as polar_factor
from steepest.linalg import soft_clip

SHAPES = [(5, 8), (8, 5), (6, 6), (2, 3, 8, 5), (200, 50), (1, 4), (1, 1)]


def wide(dtype):
    return torch.complex128 if dtype.is_complex else torch.float64


def oracle(a, c):
    u, s, vt = torch.linalg.svd(a.to(wide(a.dtype)), full_matrices=False)
    return (u * (s / (1 + (s / c) ** 2).sqrt()).unsqueeze(-2)) @ vt


def error(got, a, c):
    """Of the singular directions, relative to the threshold or, where nothing is clipped, to the largest value."""
    want = oracle(a, c)
    size = torch.linalg.matrix_norm(want, 2).clamp_min(1e-300)
    return (torch.linalg.matrix_norm(got.to(want.dtype) - want, 2) / size).max().item()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-10), (torch.complex128, 1e-10), (torch.float32, 5e-5), (torch.complex64, 5e-5)],
)
@pytest.mark.parametrize("ratio", [1e-2, 0.1, 1.0, 30.0, 1e6, 1e20])
def test_is_the_formula(shape, dtype, tolerance, ratio):
    a = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    size = torch.linalg.svdvals(a).pow(4).sum(-1).pow(0.25).max().item()
    for scale in (1.0, 1e-12, 1e12):
        assert error(soft_clip(a * scale, ratio * size * scale), a * scale, ratio * size * scale) < tolerance


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.floats(-3, 3), st.integers(0, 1000))
def test_bounded_and_finite_at_every_rank(m, n, rank, power, seed):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(m, rank, generator=generator) @ torch.randn(rank, n, generator=generator)
    threshold = 10**power
    s = torch.linalg.svdvals(soft_clip(a, threshold).double())
    assert s.isfinite().all()
    assert s.max() <= threshold * 1.001
    before = torch.linalg.svdvals(a.double())
    assert s.max() <= before.max() * 1.001


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    a = torch.randn(20, 30, generator=torch.Generator().manual_seed(0)).to(dtype)
    got = soft_clip(a, 2.0)
    assert got.dtype == dtype
    assert error(got, a.double(), 2.0) < 4 * torch.finfo(dtype).eps


def test_zero_and_nothing_to_clip():
    assert torch.equal(soft_clip(torch.zeros(3, 4), 1.0), torch.zeros(3, 4))
    assert soft_clip(torch.zeros(0, 3), 1.0).shape == (0, 3)
    a = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(soft_clip(a, 1e9), a, rtol=1e-12, atol=0)
    torch.testing.assert_close(soft_clip(a, 1e-3) / 1e-3, polar_factor(a), rtol=0, atol=1e-2)


def test_reduced_products_go_through_float64(monkeypatch):
    """Where torch may multiply in TF32, as on a GPU: a Gram matrix of such products would lose its small values."""
    seen, plain = [], torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: seen.append(a.dtype) or plain(a, b))
    monkeypatch.setattr(importlib.import_module("steepest.linalg.polar"), "_reduced_products", lambda device: True)
    a = torch.randn(30, 40, generator=torch.Generator().manual_seed(0))
    assert error(soft_clip(a, 0.1), a, 0.1) < 1e-6
    assert set(seen) == {torch.float64}


def test_differentiable():
    assert gradcheck(lambda a: soft_clip(a, 0.7), torch.randn(4, 3, dtype=torch.float64, requires_grad=True))


def test_refused_by_name():
    with pytest.raises(ValueError, match="threshold"):
        soft_clip(torch.ones(2, 2), 0.0)
