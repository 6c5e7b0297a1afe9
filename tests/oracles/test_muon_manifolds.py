"""Intrinsic Muon's first step against its formulas, and the exact step on Stiefel against an independent solver.

The formulas are those of Li et al. 2026 (2605.09238), by float64 SVD and symmetric eigendecompositions or in 50 digits.
`CLOSE` is rounding, times the condition of the small matrices involved (below 1e3 here).
"""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from steepest import SPD, FixedRank, Grassmann, Manifold, Muon, Stiefel
from steepest.norms import Spectral, StiefelSpectral

CLOSE = {"rtol": 1e-10, "atol": 1e-11}
LR = 0.1


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def point(manifold: Manifold, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return manifold.random_point(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def polar(a: Tensor) -> Tensor:
    """U V^T over the singular values that are not rounding."""
    u, s, vt = torch.linalg.svd(a, full_matrices=False)
    return (u * (s > 1e-12 * max(1.0, s.max().item()))) @ vt


def sym_power(a: Tensor, p: float) -> Tensor:
    w, v = torch.linalg.eigh(a)
    return (v * w**p) @ v.mT


def muon(manifold: Manifold, tensors: tuple[Tensor, ...], grads: tuple[Tensor, ...], **options: Any) -> list[Tensor]:
    params = [nn.Parameter(t.clone()) for t in tensors]
    for p, g in zip(params, grads, strict=True):
        p.grad = g.clone()
    options = {"lr": LR, "norm": Spectral("exact"), "momentum": 0.0, "nesterov": False, **options}
    Muon([{"params": params, "geometry": manifold}], **options).step()
    return [p.detach() for p in params]


def direction(x: Tensor, g: Tensor) -> Tensor:
    """The step on Stiefel: one polar factor in the span of x, one across it."""
    xg = x.mH @ g
    turn = (xg - xg.mH) / 2
    return x @ ((p := polar(turn)) - p.mH) / 2 + polar(g - x @ xg)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", [(8, 3), (20, 5), (40, 35), (6, 1), (30, 12)], ids=str)
def test_stiefel(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Odd p, where a real skew matrix has a null vector; p > n - p, where the horizontal block has not full rank."""
    x, g = point(Stiefel(), *shape, dtype=dtype), randn(*shape, seed=1, dtype=dtype)
    step = x - LR * direction(x, g)
    (y,) = muon(Stiefel(), (x,), (g,))
    q, r = torch.linalg.qr(step)
    torch.testing.assert_close(y, q * torch.sgn(r.diagonal()), **CLOSE)
    (y,) = muon(Stiefel("euclidean", "polar"), (x,), (g,))
    torch.testing.assert_close(y, polar(step), **CLOSE)


@pytest.mark.parametrize("n", [3, 4, 64])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_square_stiefel_takes_no_step_out_of_rounding(n: int, dtype: torch.dtype) -> None:
    """There the horizontal block is rounding error alone, and its polar factor as long as any other (in the official
    code it is added to the step): the step must stay x polar(skew(x^T g))."""
    x, g = point(Stiefel(), n, n).to(dtype), randn(n, n, seed=1).to(dtype)
    xg = x.mT.double() @ g.double()
    turn = polar(xg - xg.mT)
    (y,) = muon(Stiefel("euclidean", "polar"), (x,), (g,))
    expected = polar(x.double() @ (torch.eye(n, dtype=torch.float64) - LR * turn))
    # a skew matrix has pairs of small singular values, which rounding turns: eps times its condition, 1e3 here
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=2e3 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("shape", [(8, 3), (20, 5), (7, 5), (6, 1)], ids=str)
def test_grassmann(shape: tuple[int, int]) -> None:
    x, g = point(Grassmann(), *shape), randn(*shape, seed=1)
    (y,) = muon(Grassmann(), (x,), (g,))
    step = polar(g - x @ (x.mT @ g))
    torch.testing.assert_close(x.mT @ step, torch.zeros_like(x.mT @ x), **CLOSE)
    q, _ = torch.linalg.qr(x - LR * step)
    torch.testing.assert_close(y @ y.mT, q @ q.mT, **CLOSE)


@pytest.mark.parametrize("n", [1, 3, 10])
def test_spd(n: int) -> None:
    """X^(1/2) sign(X^(1/2) sym(G) X^(1/2)) X^(1/2): our frame is the Cholesky factor, and the step the same."""
    x, g = point(SPD(), n, n), randn(n, n, seed=1)
    root, inverse = sym_power(x, 0.5), sym_power(x, -0.5)
    w, v = torch.linalg.eigh(root @ (g + g.mT) @ root / 2)
    step = root @ (v * w.sign()) @ v.mT @ root
    torch.testing.assert_close(SPD().push(x, Spectral("exact").dual(SPD().pull(x, g))), step, **CLOSE)
    (y,) = muon(SPD(), (x,), (g,))
    w, v = torch.linalg.eigh(-LR * inverse @ step @ inverse)
    torch.testing.assert_close(y, root @ (v * w.exp()) @ v.mT @ root, **CLOSE)
    (y,) = muon(SPD(retraction="second_order"), (x,), (g,))
    torch.testing.assert_close(y, x - LR * step + LR**2 / 2 * step @ x.inverse() @ step, **CLOSE)


@pytest.mark.parametrize("shape", [(9, 7, 3), (6, 6, 1), (20, 30, 8)], ids=str)
def test_fixed_rank(shape: tuple[int, int, int]) -> None:
    m, n, r = shape
    b, a = randn(m, r), randn(r, n, seed=1)
    gb, ga = randn(m, r, seed=2), randn(r, n, seed=3)
    right, left = sym_power(a @ a.mT, -0.5), sym_power(b.mT @ b, -0.5)
    expected = b - LR * polar(gb @ right) @ right, a - LR * left @ polar(left @ ga)
    for ours, theirs in zip(muon(FixedRank(), (b, a), (gb, ga)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


def digits(t: Tensor) -> Any:
    return mpmath.matrix(t.tolist())


def inverse_root(s: Any) -> Any:
    w, v = mpmath.eigsy(s)
    return v * mpmath.diag([1 / mpmath.sqrt(x) for x in w]) * v.T


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6])
def test_fixed_rank_in_fifty_digits(condition: float) -> None:
    """Factors of that condition: a Gram matrix squares it, and a formula on Gram matrices alone keeps four digits of
    the step at 1e6. (For well-conditioned factors the official code keeps 5 to 8 digits, as it adds 2e-8 to them.)"""
    spread = torch.logspace(0, -float(np.log10(condition)), 4, dtype=torch.float64)
    b, a = randn(6, 4) * spread, spread.flip(0)[:, None] * randn(4, 5, seed=1)
    gb, ga = randn(6, 4, seed=2), randn(4, 5, seed=3)
    with mpmath.workdps(50):
        right, left = inverse_root(digits(a) * digits(a).T), inverse_root(digits(b).T * digits(b))
        hb, ha = digits(gb) * right, left * digits(ga)
        steps = hb * inverse_root(hb.T * hb) * right, left * inverse_root(ha * ha.T) * ha
        expected = [
            torch.tensor([[float(s[i, j]) for j in range(s.cols)] for i in range(s.rows)], dtype=torch.float64)
            for s in steps
        ]
    ours = FixedRank().push((b, a), tuple(Spectral("exact").dual(h) for h in FixedRank().pull((b, a), (gb, ga))))
    for step, exact in zip(ours, expected, strict=True):
        # rounding of the inputs alone moves the polar factor of a matrix of this condition by as much
        assert (step - exact).abs().max() / exact.abs().max() < 1e-14 + 5e-16 * condition


def test_fixed_rank_step_does_not_see_the_factorisation() -> None:
    b, a, gw = randn(7, 3), randn(3, 6, seed=1), randn(7, 6, seed=2)
    mix = randn(3, 3, seed=3)
    x, y = muon(FixedRank(), (b, a), (gw @ a.mT, b.mT @ gw))
    other = b @ mix, torch.linalg.solve(mix, a)
    u, v = muon(FixedRank(), other, (gw @ other[1].mT, other[0].mT @ gw))
    torch.testing.assert_close(u @ v, x @ y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("manifold", [Stiefel(), Stiefel("canonical"), Grassmann(), SPD()], ids=str)
def test_step_of_a_batch_is_the_steps_of_its_points(manifold: Manifold) -> None:
    shape = (6, 6) if isinstance(manifold, SPD) else (6, 3)
    x, g = point(manifold, 4, *shape), randn(4, *shape, seed=1)
    one_by_one = [muon(manifold, (p,), (q,))[0] for p, q in zip(x, g, strict=True)]
    (together,) = muon(manifold, (x,), (g,))
    torch.testing.assert_close(together, torch.stack(one_by_one), **CLOSE)
    params = [nn.Parameter(p.clone()) for p in x]  # as one bucket
    for p, q in zip(params, g, strict=True):
        p.grad = q.clone()
    norm = Spectral("exact")
    Muon([{"params": params, "geometry": manifold}], lr=LR, norm=norm, momentum=0.0, nesterov=False).step()
    torch.testing.assert_close(torch.stack([p.detach() for p in params]), together, **CLOSE)


def test_maximize_goes_the_other_way() -> None:
    x, g = point(Stiefel(), 8, 3), randn(8, 3, seed=1)
    (up,) = muon(Stiefel(), (x,), (g,), maximize=True)
    (down,) = muon(Stiefel(), (x,), (-g,))
    assert torch.equal(up, down)


# The exact step on Stiefel. -------------------------------------------------------------------------------------------


def upper_bound(a: np.ndarray, z: np.ndarray, start: np.ndarray) -> float:
    """min over symmetric M of the nuclear norm of [A + M; Z], by L-BFGS: every value of it bounds the maximum of
    <G, V> over tangent V of spectral norm one from above."""
    p = a.shape[0]
    rows, cols = np.triu_indices(p)
    twice = np.where(rows == cols, 1.0, 2.0)

    def value(entries: np.ndarray) -> tuple[float, np.ndarray]:
        m = np.zeros((p, p))
        m[rows, cols] = m[cols, rows] = entries
        u, s, vt = np.linalg.svd(np.concatenate([a + m, z]), full_matrices=False)
        slope = (u @ vt)[:p]
        return s.sum(), ((slope + slope.T) / 2)[rows, cols] * twice

    out = minimize(value, start[rows, cols], jac=True, method="L-BFGS-B", options={"maxiter": 300, "maxcor": 20})
    return float(out.fun)


SHAPES = [(20, 5), (100, 50), (64, 64), (7, 4), (5, 4), (5, 1), (10, 8)]


@pytest.mark.parametrize("metric", ["euclidean", "canonical"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_stiefel_spectral_is_the_linear_minimisation_oracle(shape: tuple[int, int], metric: str) -> None:
    """Its <G, V> is below the maximum, the solver's bound above: where they meet, both are right. The hard cases are n
    close to 2p and below, where the best [A + M; Z] has not full rank."""
    manifold = Stiefel(metric)
    norm = StiefelSpectral(manifold.scale)
    x, g = point(manifold, *shape), randn(*shape, seed=1)
    step = norm.dual(manifold.pull(x, g))
    v = manifold.push(x, step)
    torch.testing.assert_close(x.mT @ v + v.mT @ x, torch.zeros_like(x.mT @ x), **CLOSE)
    assert torch.linalg.matrix_norm(v, 2) <= 1 + 1e-6
    torch.testing.assert_close(norm.value(step), torch.linalg.matrix_norm(v, 2), **CLOSE)
    reached = (g * v).sum().item()
    xg = (x.mT @ g).numpy()
    a, z = (xg - xg.T) / 2, (g - x @ (x.mT @ g)).numpy()
    bound = upper_bound(a, z, np.zeros_like(a))
    assert reached <= bound * (1 + 1e-9)
    assert reached >= bound * (1 - 1e-3)  # the solvers' accuracies, 1e-4 and about as much


@pytest.mark.parametrize("shape", [(20, 5), (100, 50), (64, 64)], ids=str)
def test_stiefel_spectral_descends_more_than_its_rivals(shape: tuple[int, int]) -> None:
    """Per unit spectral norm of the step to X: against the two blocks' polar factors, and against the projection of the
    polar factor of the gradient. On a square matrix all three are the same."""
    manifold = Stiefel()
    for seed in range(5):
        x, g = point(manifold, *shape, seed=seed), randn(*shape, seed=seed + 50)
        blocks = manifold.pull(x, g)

        def descent(v: Tensor, g: Tensor = g) -> float:
            return ((g * v).sum() / torch.linalg.matrix_norm(v, 2)).item()

        ours = descent(manifold.push(x, StiefelSpectral().dual(blocks)))
        two = descent(manifold.push(x, tuple(Spectral("exact").dual(b) for b in blocks)))
        projected = descent(manifold.grad(x, polar(manifold.grad(x, g))))
        tolerance = 1e-3 if shape[0] == shape[1] else 0.0  # the iteration's accuracy
        assert ours >= two * (1 - tolerance)
        assert ours >= projected * (1 - tolerance)
        if shape == (20, 5):
            assert ours > 1.05 * two  # measured over 20 seeds: 1.10 to 1.25


def test_muon_with_stiefel_spectral_moves_by_the_oracle() -> None:
    x, g = point(Stiefel(), 12, 4), randn(12, 4, seed=1)
    step = Stiefel().push(x, StiefelSpectral().dual(Stiefel().pull(x, g)))
    (y,) = muon(Stiefel("euclidean", "polar"), (x,), (g,), norm=StiefelSpectral())
    torch.testing.assert_close(y, polar(x - LR * step), **CLOSE)
