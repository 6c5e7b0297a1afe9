"""Norms: each dual map against the norm's definition, its dual norm, and random competitors.

float64 except where said; 1e-12 relative is a few thousand eps for matrices of up to 8 x 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from steepest import Stiefel
from steepest.norms import Columns, Frobenius, Max, Norm, Nuclear, Rows, Spectral, StiefelSpectral

NORMS: dict[str, tuple[Norm, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    # the norm, its definition, its dual norm's definition
    "frobenius": (Frobenius(), lambda x: x.square().sum().sqrt(), lambda g: g.square().sum().sqrt()),
    "spectral": (
        Spectral("exact"),
        lambda x: torch.linalg.eigvalsh(x.mT @ x)[-1].clamp_min(0).sqrt(),
        lambda g: torch.linalg.svdvals(g).sum(),
    ),
    "nuclear": (Nuclear(), lambda x: torch.linalg.svdvals(x).sum(), lambda g: torch.linalg.svdvals(g)[0]),
    "max": (Max(), lambda x: x.abs().max(), lambda g: g.abs().sum()),
    "rows": (Rows(), lambda x: x.norm(dim=1).max(), lambda g: g.norm(dim=1).sum()),
    "columns": (Columns(), lambda x: x.norm(dim=0).max(), lambda g: g.norm(dim=0).sum()),
}
named = pytest.mark.parametrize("name", NORMS)


def matrix(m: int, n: int, seed: int, rank: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if rank is None:
        return torch.randn(m, n, dtype=torch.float64, generator=generator)
    left = torch.randn(m, rank, dtype=torch.float64, generator=generator)
    return left @ torch.randn(rank, n, dtype=torch.float64, generator=generator)


sizes = st.integers(1, 8)
seeds = st.integers(0, 2**31)


@named
@given(m=sizes, n=sizes, seed=seeds, power=st.integers(-100, 100))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_dual_reaches_the_dual_norm(name: str, m: int, n: int, seed: int, power: int) -> None:
    """At any scale from 1e-100 to 1e100."""
    norm, value, dual_value = NORMS[name]
    g = matrix(m, n, seed)
    d = norm.dual(g * 10.0**power)
    torch.testing.assert_close((g * d).sum(), dual_value(g), rtol=1e-12, atol=0)
    torch.testing.assert_close(norm.value(d), torch.ones((), dtype=d.dtype), rtol=1e-12, atol=0)
    torch.testing.assert_close(norm.value(g), value(g), rtol=1e-7, atol=0)  # 1e-7: the root of a Gram matrix's eps


@named
@given(m=sizes, n=sizes, seed=seeds)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_no_competitor_is_rewarded_more(name: str, m: int, n: int, seed: int) -> None:
    """Random matrices of norm one, and small changes of the dual itself brought back to norm one."""
    norm, value, _ = NORMS[name]
    g = matrix(m, n, seed)
    best = norm.dual(g)
    for k in range(10):
        other = matrix(m, n, seed + 1 + k)
        for rival in (other, best + 0.1 * other, best + 1e-3 * other, g + 0.1 * other):
            reward = (g * rival).sum() / value(rival)
            assert reward <= (g * best).sum() * (1 + 1e-7)  # as above, of `value`


@named
@given(m=st.integers(2, 8), n=st.integers(2, 8), seed=seeds, rank=st.integers(0, 2))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_rank_deficient(name: str, m: int, n: int, seed: int, rank: int) -> None:
    norm, _, dual_value = NORMS[name]
    g = matrix(m, n, seed, rank)
    d = norm.dual(g)
    assert d.isfinite().all()
    torch.testing.assert_close((g * d).sum(), dual_value(g), rtol=1e-11, atol=0)
    if name in ("spectral", "nuclear"):
        s = torch.linalg.svdvals(d)
        expected = min(rank, min(m, n)) if name == "spectral" else min(rank, 1)
        assert (s > 0.5).sum() == expected  # nothing in the null space of g
        assert (s[expected:] < 1e-10).all()


@named
def test_zero_gives_zero_and_batches_are_independent(name: str) -> None:
    norm, _, _ = NORMS[name]
    g = torch.stack([matrix(5, 3, 0), torch.zeros(5, 3, dtype=torch.float64), matrix(5, 3, 1, rank=1)])
    d = norm.dual(g)
    assert torch.equal(d[1], torch.zeros_like(d[1]))
    for one, part in zip(g, d, strict=True):
        torch.testing.assert_close(norm.dual(one), part, rtol=1e-12, atol=1e-14)
    values = norm.value(g)
    assert values.shape == (3,)
    assert values[1] == 0
    assert norm.dual(g.expand(2, 3, 5, 3)).shape == (2, 3, 5, 3)


@named
def test_zero_rows_and_columns(name: str) -> None:
    norm, _, dual_value = NORMS[name]
    g = matrix(5, 4, 0)
    g[2], g[:, 1] = 0, 0
    d = norm.dual(g)
    assert d.isfinite().all()
    torch.testing.assert_close((g * d).sum(), dual_value(g), rtol=1e-12, atol=0)
    assert (d[2].abs() < 1e-14).all()
    assert (d[:, 1].abs() < 1e-14).all()


@named
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_keeps_the_dtype(name: str, dtype: torch.dtype) -> None:
    norm, _, dual_value = NORMS[name]
    g = matrix(6, 4, 0).to(dtype)
    d = norm.dual(g)
    assert d.dtype == dtype
    reward = (g.double() * d.double()).sum()
    torch.testing.assert_close(reward, dual_value(g.double()), rtol=8 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (40, 8), (5, 5)], ids=str)
@pytest.mark.parametrize(
    ("norm", "low", "high"),
    [
        # ranges of the polynomials on [1e-2, 1], by evaluating them there; bfloat16 adds a few 2^-8
        (Spectral("polar_express"), 0.85, 1.15),
        (Spectral("polar_express", 8), 0.999, 1.001),
        (Spectral("quintic"), 0.97, 1.04),
        (Spectral("keller_jordan"), 0.67, 1.21),
        (Spectral("keller_jordan", dtype="bfloat16"), 0.65, 1.23),
    ],
    ids=lambda v: str(v) if isinstance(v, Norm) else "",
)
def test_muon_grade_duals(norm: Spectral, low: float, high: float, shape: tuple[int, int]) -> None:
    """The same singular vectors, and singular values near one, for g of condition 30."""
    m, n = shape
    k = min(shape)
    u, _ = torch.linalg.qr(matrix(m, k, 0))
    v, _ = torch.linalg.qr(matrix(n, k, 1))
    s = torch.logspace(0, -math.log10(30), k, dtype=torch.float64)
    core = u.mT @ norm.dual((u * s) @ v.mT) @ v
    slack = 2e-2 if norm.dtype == "bfloat16" else 1e-9
    assert (core - torch.diag(core.diagonal())).abs().max() < slack
    assert low < core.diagonal().min()
    assert core.diagonal().max() < high
    assert torch.equal(norm.dual(torch.zeros(shape)), torch.zeros(shape))


@pytest.mark.parametrize("norm", [Spectral("exact"), Spectral()], ids=str)
def test_spectral_is_orthogonally_equivariant(norm: Spectral) -> None:
    g, u, v = matrix(6, 4, 0), Stiefel().project(matrix(6, 6, 1)), Stiefel().project(matrix(4, 4, 2))
    torch.testing.assert_close(norm.dual(u @ g @ v), u @ norm.dual(g) @ v, rtol=1e-11, atol=1e-12)
    assert torch.equal(norm.dual(-g), -norm.dual(g))


# The joint norm of Stiefel's two blocks. ------------------------------------------------------------------------------


def blocks(n: int, p: int, seed: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """A point, and the coordinates of a gradient at it."""
    x = Stiefel().project(matrix(n, p, seed))
    return x, *Stiefel("euclidean" if scale == 1 else "canonical").pull(x, matrix(n, p, seed + 1))


def descent(g: tuple[Tensor, Tensor], d: tuple[Tensor, Tensor]) -> float:
    return sum((a * b).sum().item() for a, b in zip(g, d, strict=True))


@pytest.mark.parametrize("scale", [1.0, 2**0.5])
@given(p=st.integers(1, 6), more=st.integers(0, 6), seed=seeds)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_stiefel_spectral_is_feasible_and_beats_competitors(scale: float, p: int, more: int, seed: int) -> None:
    norm = StiefelSpectral(scale)
    x, *g = blocks(p + more, p, seed, scale)
    d = norm.dual(tuple(g))
    if p == 1 and more == 0:  # a single point: nothing to descend
        assert descent(g, d) == pytest.approx(0, abs=1e-12)
        return
    metric = Stiefel("euclidean" if scale == 1 else "canonical")
    v = metric.push(x, d)
    torch.testing.assert_close(norm.value(d), torch.linalg.matrix_norm(v, 2), rtol=1e-9, atol=1e-9)
    assert norm.value(d) <= 1 + 1e-9
    assert torch.equal(d[0], -d[0].mT)
    torch.testing.assert_close(
        x.mT @ d[1], torch.zeros_like(d[0]), rtol=0, atol=1e-7
    )  # roots of rounding in a Gram matrix
    best = descent(g, d)
    for k in range(10):
        rival = metric.pull(x, matrix(p + more, p, seed + 2 + k))
        for step in (rival, tuple(a + 0.1 * b for a, b in zip(d, rival, strict=True)), tuple(g)):
            assert descent(g, step) / norm.value(step) <= best * (1 + 2e-3)  # its stated accuracy, with room


@pytest.mark.parametrize("scale", [1.0, 2**0.5])
def test_stiefel_spectral_on_zero_and_rank_deficient_gradients(scale: float) -> None:
    norm = StiefelSpectral(scale)
    zero = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(7, 3, dtype=torch.float64)
    assert all(torch.equal(a, b) for a, b in zip(norm.dual(zero), zero, strict=True))
    x, a, z = blocks(7, 3, 0, scale)
    metric = Stiefel("euclidean" if scale == 1 else "canonical")
    one = metric.pull(x, matrix(7, 1, 3) @ matrix(1, 3, 4))
    cases: dict[str, tuple[Tensor, Tensor]] = {"rank one": one, "no A": (0 * a, z), "no Z": (a, 0 * z)}
    for name, g in cases.items():
        d = norm.dual(g)
        assert all(part.isfinite().all() for part in d), name
        assert norm.value(d) == pytest.approx(1, abs=1e-9), name
        assert descent(g, d) > 0, name
    # Only one block: its own polar factor, and the nuclear norm of it.
    only_a, only_z = torch.linalg.svdvals(a).sum().item() / scale, torch.linalg.svdvals(z).sum().item()
    assert descent(cases["no A"], norm.dual(cases["no A"])) == pytest.approx(only_z, rel=1e-6)
    assert descent(cases["no Z"], norm.dual(cases["no Z"])) == pytest.approx(only_a, rel=1e-6)


def test_stiefel_spectral_batches_and_scales() -> None:
    norm, g = StiefelSpectral(), [blocks(7, 3, seed)[1:] for seed in range(3)]
    batch: Any = tuple(torch.stack(parts) for parts in zip(*g, strict=True))
    together = norm.dual(batch)
    for i, one in enumerate(g):
        for a, b in zip(norm.dual(one), together, strict=True):
            torch.testing.assert_close(a, b[i], rtol=1e-9, atol=1e-10)
    tiny = norm.dual(tuple(1e-30 * part for part in batch))
    for a, b in zip(tiny, together, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("shape", [(20, 5), (30, 20), (16, 16)], ids=str)
def test_stiefel_spectral_in_float32(shape: tuple[int, int]) -> None:
    _, a, z = blocks(*shape, 0)
    exact, norm = descent((a, z), StiefelSpectral().dual((a, z))), StiefelSpectral()
    d = norm.dual((a.float(), z.float()))
    assert d[0].dtype == d[1].dtype == torch.float32
    assert norm.value(tuple(p.double() for p in d)) <= 1 + 1e-5
    assert descent((a, z), tuple(p.double() for p in d)) == pytest.approx(exact, rel=1e-2)  # where it has not converged
