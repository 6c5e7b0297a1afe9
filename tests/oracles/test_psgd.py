"""PSGD against its author's code, and its first steps against dense linear algebra.

The numbers are in reference/psgd/*.json, and reference/make_psgd.py made them: 20 steps in float64 on the fixed random
gradients of `problem`, with the same random draws on both sides. What remains are other orders of operation, and that
ours works in units in which Q starts as the identity. Errors are relative to the distance that the official code moved.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import steepest
from steepest.manifolds import Euclidean
from steepest.transforms import Context, CrossWhiten, KronWhiten, LowRankWhiten, Transform, kron_whiten, whiten

REFERENCE = Path(__file__).parent / "reference"
FILES = {file.stem: json.loads(file.read_text()) for file in sorted((REFERENCE / "psgd").glob("*.json"))}
CASES = [(name, case) for name, content in FILES.items() for case in content["cases"]]
TOLERANCE = 1e-6
LR = 0.1
"""Of make_psgd.py."""


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REFERENCE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


problem, draws = load("problem"), load("psgd_draws")

NAMES = {
    "dQ": "dQ",
    "preconditioner_max_size": "max_side",
    "preconditioner_max_skew": "max_skew",
    "preconditioner_init_scale": "initial",
    "betaL": "beta",
    "rank_of_approximation": "rank",
    "lr_preconditioner": "lr_preconditioner",
    "momentum": "momentum",
}
"""Ours of theirs, by name."""


def ours(name: str, params: list[torch.nn.Parameter], theirs: dict[str, Any]) -> steepest.PSGD:
    options = {NAMES[key]: value for key, value in theirs.items() if key in NAMES} | {"lr": LR}
    options = {"momentum": 0.0, "whiten": "gradient" if theirs.get("whiten_grad", True) else "momentum"} | options
    if name == "cross":  # its beta is no average, no clip, and no damping, as the file was made
        options |= {"form": "cross", "beta": 0.0, "clip": (1e9, 1e9), "damping": 0.0}
    elif name == "low_rank":
        options["form"] = "low_rank"
    return steepest.PSGD(params, **options)


def inject(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give our code the numbers that the official code was given, call by call, counted anew in each step. What else it
    draws there is whether U or V moves, which `draws` has by turns, as ours does."""
    call = 0

    def normal(shape: tuple[int, ...], like: torch.Tensor, seed: int, step: int, *key: str) -> torch.Tensor:
        nonlocal call
        call = 0 if key[0] == "noise" or key == ("start", "U") else call + 1
        return draws.numbers(step - 1, call, shape).to(like.dtype)

    monkeypatch.setattr(whiten, "normal", normal)


@pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{name}-{case['name']}" for name, case in CASES])
def test_agrees_with_official_code(name: str, case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch)
    params, gradients = problem.problem(case["shapes"])
    start = [p.detach().clone() for p in params]
    for step, values in problem.trace(params, gradients, ours(name, params, case["options"])).items():
        for a, b, x in zip(values, case[f"after_{step}"], start, strict=True):
            b = torch.tensor(b, dtype=torch.float64)
            error = torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b - x)
            assert error < TOLERANCE, f"{tuple(a.shape)} after step {step}: off by {error:.1e}"


# The first steps, from dense matrices. ----------------------------------------------------------------------------


def start(transform: Transform, h: torch.Tensor) -> tuple[dict[str, torch.Tensor], Context]:
    ctx = Context(Euclidean(), None, 0.0, 1)
    return transform.init(h, ctx), ctx


def gradients(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=dtype)


def exact_norm(a: torch.Tensor, probes: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    return torch.linalg.matrix_norm(a, 2)


def kron(q: list[torch.Tensor]) -> torch.Tensor:
    """Q_L h Q_R^H as a matrix on the entries of h, row by row."""
    return torch.kron(q[0].contiguous(), q[1].conj().contiguous())


def sides(x: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
    """Of a matrix on the entries of an m x n matrix the partial traces over columns and over rows."""
    m, n = x.shape
    t = weight.view(m, n, m, n)
    return [torch.einsum("ikjk->ij", t), torch.einsum("kikj->ij", t).conj()]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("dQ", ["EQ", "Q0.5EQ1.5", "QUAD"])
def test_first_steps_of_kron_are_those_of_dense_matrices(
    dQ: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps on a 3 x 4 block, with Q a matrix on its 12 entries, and the criterion's gradient by partial traces.
    To rounding, as norms are exact on both sides."""
    monkeypatch.setattr(kron_whiten, "spectral_norm", exact_norm)
    transform = KronWhiten(dQ=dQ, max_skew=9.0, beta=0.0, damping=0.01, initial=1.0)
    state, ctx = start(transform, gradients(3, 4, dtype=dtype))
    q = [torch.eye(3, dtype=dtype), torch.eye(4, dtype=dtype)]
    for step, h in enumerate(gradients(3, 3, 4, dtype=dtype), 1):
        at = Context(ctx.manifold, None, 0.0, step)
        out = transform.update(h, state, at)
        v = whiten.normal((3, 4), h, 0, step, "noise")
        big = kron(q)
        g = (h + (0.01 + torch.finfo(dtype).eps * h.abs()) * v).flatten()
        a = big @ g if dQ == "EQ" else big.mH @ big @ g
        b = torch.linalg.inv(big).mH @ v.flatten()
        t1 = sides(h, torch.outer(a, a.conj()))
        t2 = sides(h, torch.outer(b, b.conj()) if dQ == "EQ" else torch.eye(12, dtype=dtype))
        for i, (p, r) in enumerate(zip(t1, t2, strict=True)):
            e = 0.1 * (p - r) / torch.linalg.matrix_norm(p + r, 2)
            one = torch.eye(len(e), dtype=dtype)
            if dQ == "EQ":
                q[i] = q[i] - e.triu() @ q[i]
            elif dQ == "QUAD":
                q[i] = (one - e / 2) @ q[i] @ (one - e / 2)
            else:
                q[i] = q[i] - e @ q[i]
                turn = q[i].mH - q[i]
                turn = turn / torch.linalg.matrix_norm(turn, 2) if turn.abs().max() > 1e-14 else 0 * turn
                grid = [(turn @ q[i]).trace().real, (turn @ turn @ q[i]).trace().real]
                size = min(-grid[0] / grid[1], 1 / 8) if grid[1] < 0 else 1 / 8
                q[i] = (one + size * turn + size**2 / 2 * turn @ turn) @ q[i]
        expected = (kron(q).mH @ kron(q) @ h.flatten()).view_as(h)
        torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("size", [5, 6])
def test_steps_of_cross_are_those_of_dense_matrices(size: int, dtype: torch.dtype) -> None:
    """Q as a matrix moves by E Q, E the cross in (lr / L) (a a^H - b b^H), with a = Q h and b = Q^-H v. To rounding."""
    transform = CrossWhiten(beta=0.0, initial=1.0)
    state, _ = start(transform, gradients(size, 1, dtype=dtype))
    q, one = torch.eye(size, dtype=dtype), torch.eye(size)
    for step, h in enumerate(gradients(3, size, 1, dtype=dtype), 1):
        out = transform.update(h, state, Context(Euclidean(), None, 0.0, step))
        a, b = pair(q, h, step)
        rate = 0.1 / (a.abs().square() + b.abs().square()).max()
        q = q - rate * torch.where(one.logical_or(one.flip(0)), a @ a.mH - b @ b.mH, 0) @ q
        torch.testing.assert_close(out, q.mH @ q @ h, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("step", [1, 2])
def test_steps_of_low_rank_are_those_of_dense_matrices(step: int, dtype: torch.dtype) -> None:
    """With a and b as above, d moves by the gradient for its logarithm, and I + U V^H by (lr / L) (a a^H - b b^H) times
    V V^H if U moves, and by U U^H times that if V does. U and V begin balanced. To rounding."""
    transform = LowRankWhiten(rank=2, beta=0.0, initial=1.0)
    state, _ = start(transform, gradients(6, 1, dtype=dtype))
    U, V = 0.8 * torch.linalg.qr(gradients(2, 6, 2, dtype=dtype))[0]
    d = gradients(6, 1).abs() + 0.5
    for key, value in (("U", U), ("V", V), ("d", d)):
        state[key].copy_(value)
    h = gradients(2, 6, 1, dtype=dtype)[1]
    out = transform.update(h, state, Context(Euclidean(), None, 0.0, step))
    core = torch.eye(6, dtype=dtype) + U @ V.mH
    q = core * d.mT
    a, b = pair(q, h, step)
    v = whiten.normal((6, 1), h, 0, step, "noise")
    up, down = ((q.mH @ a) * h.conj()).real, (torch.linalg.inv(q) @ b * v.conj()).real
    d = d - 0.1 * (up - down) / (up.abs().max() + down.abs().max()) * d
    still = V if step == 1 else U
    onto, e = still @ still.mH, a @ a.mH - b @ b.mH
    e = e / (a.norm() * (onto @ a).norm() + b.norm() * (onto @ b).norm())
    core = core - 0.1 * (e @ onto if step == 1 else onto @ e) @ core
    q = core * d.mT
    torch.testing.assert_close(out, q.mH @ q @ h, rtol=1e-7, atol=1e-9)  # the damping is in a, but not in `up`


def pair(q: torch.Tensor, h: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Q h and Q^-H v, h with its damping."""
    v = whiten.normal(tuple(h.shape), h, 0, step, "noise")
    return q @ (h + (1e-9 + torch.finfo(h.dtype).eps * h.abs()) * v), torch.linalg.inv(q).mH @ v


# What it is all for. ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "transform", [KronWhiten(), KronWhiten(dQ="EQ"), KronWhiten(dQ="QUAD"), CrossWhiten(), LowRankWhiten(rank=2)]
)
def test_white_comes_out(transform: Transform) -> None:
    """Gradients P^-1 z, z white, with P in the group: after 1000 updates, lr falling to 0.001, the covariance of what
    comes out is within 0.35 of the identity, that of the gradients being off by 13 or more. What is left is the noise
    of the last hundred gradients; and U and V, whose steps are normalised together, take some thousands."""
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    if isinstance(transform, KronWhiten):
        shape, size = (3, 3), 9
        Q = torch.kron(*(torch.eye(3, dtype=torch.float64) + 0.25 * normal(2, 3, 3)))
    else:
        shape, size = (6, 1), 6
        Q, one = torch.diag(torch.linspace(0.6, 1.5, 6).double()), torch.eye(6, dtype=torch.float64)
        Q = (
            Q + 0.3 * one.flip(0)
            if isinstance(transform, CrossWhiten)
            else (one + normal(6, 2) @ normal(2, 6) / 10) @ Q
        )
    S = torch.linalg.inv(Q.mT @ Q)
    state, _ = start(transform, normal(*shape))
    for step in range(1, 1001):
        at = Context(Euclidean(), None, 0.0, step)
        slower = dataclasses.replace(transform, lr=max(0.1 * (1 - step / 1000), 1e-3))
        slower.fit((S @ normal(size)).view(shape), state, at)
    found = state["unit"] * torch.stack([transform._apply(c.view(shape), state).flatten() for c in S.mT], 1)
    one = torch.eye(size, dtype=torch.float64)
    assert torch.linalg.matrix_norm(S @ S.mT - one, 2) > 13
    left = torch.linalg.matrix_norm(found @ found.mT - one, 2)
    assert left < (0.7 if isinstance(transform, LowRankWhiten) else 0.35)


@pytest.mark.parametrize(("dQ", "tolerance"), [("EQ", 0.1), ("Q0.5EQ1.5", 1e-7), ("QUAD", 1e-7)])
def test_hessian_vector_products_give_the_inverse_hessian(dQ: str, tolerance: float) -> None:
    """H = A (x) B of condition 100: with pairs of v and H v there is no noise at the end, P = H^-1, which two of the
    motions have after 500 updates, while triangular factors are on the way."""
    generator = torch.Generator().manual_seed(0)
    A, B = (random_definite(n, 10.0, generator) for n in (3, 4))
    transform = KronWhiten(dQ=dQ, max_skew=9.0)
    state, _ = start(transform, gradients(3, 4))
    for step in range(1, 501):
        v = torch.randn(3, 4, generator=generator, dtype=torch.float64)
        transform.fit(A @ v @ B, state, Context(Euclidean(), None, 0.0, step), v)
    x = gradients(3, 4)
    found = transform._apply(A @ x @ B, state) * state["unit"]
    assert (found - x).norm() / x.norm() < tolerance


def random_definite(n: int, cond: float, generator: torch.Generator) -> torch.Tensor:
    q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    return (q * torch.logspace(0, -1, n, base=cond, dtype=torch.float64)) @ q.mT


# Parts. -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_the_spectral_norm_is_estimated_from_below(dtype: torch.dtype) -> None:
    """Never above, and seldom less than 0.8 of it: full and low rank, Hermitian and skew."""
    y = gradients(40, 60, 60, dtype=dtype)
    for a in (y @ y.mH, y[..., :2] @ y[..., :2].mH, y - y.mH):
        found = kron_whiten.spectral_norm(a, gradients(32, 60, dtype=dtype), a.abs().amax((-2, -1)))
        ratio = found / torch.linalg.matrix_norm(a, 2)
        assert ratio.max() < 1 + 1e-9
        assert ratio.min() > 0.7, ratio.min()
        assert ratio.mean() > 0.8, ratio.mean()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_a_procrustes_step_turns_towards_the_definite_factor(dtype: torch.dtype) -> None:
    """Steps leave singular values to a^4 / 4 each, and end at a positive definite matrix."""
    generator = torch.Generator().manual_seed(1)
    definite = random_definite(5, 4.0, generator).to(dtype)
    turn = torch.linalg.matrix_exp(0.3 * (gradients(5, 5, dtype=dtype) - gradients(5, 5, dtype=dtype).mH))
    q = turn @ definite
    values = torch.linalg.svdvals(q)
    for step in range(60):
        kron_whiten.procrustes_step(q.clone(), gradients(32, 5, dtype=dtype) + step, torch.tensor(1 / 8), out=q)
    torch.testing.assert_close(torch.linalg.svdvals(q), values, rtol=60 / 8**4 / 4, atol=0)
    torch.testing.assert_close(q, q.mH, rtol=0, atol=1e-3)
    assert torch.linalg.eigvalsh(q).min() > 0


def test_factors_are_evened_out_and_their_product_is_left_alone() -> None:
    transform = KronWhiten(max_skew=9.0)
    state, _ = start(transform, gradients(3, 4))
    state["left"].mul_(1e4)
    state["left_whole"].mul_(1e8)
    before = transform._apply(gradients(3, 4), state)
    for step in range(99, 101):
        transform.fit(torch.zeros(3, 4, dtype=torch.float64), state, Context(Euclidean(), None, 0.0, step))
    torch.testing.assert_close(transform._apply(gradients(3, 4), state), before, rtol=1e-12, atol=0)
    torch.testing.assert_close(state["left"].abs().max(), state["right"].abs().max(), rtol=1e-12, atol=0)


def test_the_rate_of_updates_falls_as_it_says() -> None:
    """The integral of min(1, max(1/33, e^-(t - 500)/1000)), to the last update; every k-th without a warmup."""
    falling, plain = CrossWhiten(every=33, warmup=500), CrossWhiten(every=7)
    rates = [min(1.0, max(1 / 33, math.exp(-(t - 500 - 0.5) / 1000))) for t in range(1, 8001)]
    for t in (1, 400, 500, 501, 1000, 3000, 5000, 8000):
        assert abs(falling.updates(t) - sum(rates[:t])) < 1.01
        assert falling.updates(torch.tensor(float(t), dtype=torch.float64)) == falling.updates(t)
    assert [t for t in range(1, 30) if plain.is_due(t)] == [1, 8, 15, 22, 29]
    assert sum(falling.is_due(t) for t in range(1, 2001)) == falling.updates(2000)


def test_a_refusal_names_what_it_refuses() -> None:
    for options, word in (({"dQ": "X"}, "dQ"), ({"of": "x"}, "of"), ({"lr": 2.0}, "lr"), ({"every": 0}, "every")):
        with pytest.raises(ValueError, match=word):
            KronWhiten(**options)
    with pytest.raises(ValueError, match="form: got 'x', expected one of 'kron', 'low_rank', 'cross'"):
        steepest.PSGD([torch.nn.Parameter(torch.ones(2, 2))], form="x")
