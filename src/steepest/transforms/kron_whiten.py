"""PSGD Kron: a matrix whitened from both sides."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.linalg.halves import gram, upper_product
from steepest.transforms.base import Context, State, Transform, as_matrix
from steepest.transforms.whiten import Whiten, across, bounded

MOTIONS = ("Q0.5EQ1.5", "EQ", "QUAD")
PROBES = 32
"""Vectors that a spectral norm is estimated with."""
LONGEST = 1 / 8
"""Largest step towards the positive definite matrices, so that what is off unitary by second order is below 1e-4."""


@dataclasses.dataclass(frozen=True)
class KronWhiten(Whiten):
    """Q_L^H Q_L h Q_R^H Q_R, with Q_L `(m, m)` and Q_R `(n, n)` fitted so that what comes out is white: see `Whiten`.

    Args:
        dQ: how a factor moves, in the words of the authors' code. "Q0.5EQ1.5": near the positive definite matrices, by
            products alone, and turned towards them by a step of the orthogonal Procrustes problem. "EQ": upper
            triangular, by triangular solves, as first published. "QUAD": positive definite, by products alone, and
            cheaper.
        max_side: a longer side has a diagonal factor.
        max_skew: and so has a side of length s with s^2 > max_skew m n: by default the longer one of two.
        lr, beta, damping, momentum, of, every, warmup, initial, seed: see `Whiten`.

    With y = P h, for "Q0.5EQ1.5" the gradient of the left factor is y y^H - n I: the expectation over v has been taken.
    For "EQ" it is the upper triangle of a a^H - b b^H, with a = Q_L h Q_R^H and b = Q_L^-H v Q_R^-1.

    P_L and P_R are kept beside them, so that they need not be made anew where they are applied.

    The criterion fixes Q_L and Q_R only up to a factor, which is evened out at every hundredth update (in the authors'
    code at random, one time in a hundred). Their code has a factor for every axis of a tensor; here a tensor is the
    matrix that `as_matrix` makes of it, and a side of length 1 has none.

    Li 2015 (1512.04202), Pooladzandi and Li 2024 (2402.04553), and the authors' code for dQ.

    >>> from steepest.transforms import KronWhiten
    >>> KronWhiten(dQ="EQ", max_side=1024).lr
    0.1
    """

    dQ: str = "Q0.5EQ1.5"
    max_side: int = 8192
    max_skew: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("max_side", self.max_side)
        check_range("max_skew", self.max_skew)
        if self.dQ not in MOTIONS:
            raise ValueError(f"dQ: got {self.dQ!r}, expected one of {', '.join(map(repr, MOTIONS))}")

    def _matrix(self, h: Tensor, ctx: Context) -> Tensor:
        return as_matrix(h, ctx.ndim)

    def _start(self, x: Tensor) -> State:
        *batch, m, n = x.shape
        state = {}
        for key, side in (("left", m), ("right", n)):
            if side == 1 < m * n or (key == "right" and n == 1):
                continue
            full = side <= self.max_side and side**2 <= self.max_skew * m * n and side > 1
            one = torch.eye(side, dtype=x.dtype, device=x.device) if full else x.real.new_ones(side)
            state[key] = one.expand(*batch, *one.shape).clone()
            state[f"{key}_smooth"] = x.real.new_zeros(batch)
            if full:
                state[f"{key}_whole"] = state[key].clone()
        return state

    def _fit(self, x: Tensor, noise: Tensor, v: Tensor | None, alive: Tensor, state: State, step: Any) -> None:
        if self.dQ == "EQ":
            a = _turn(state, x)
            b = _turn_back(state, noise if v is None else v, x)
            alive = bounded(alive, a, b)
        else:
            a, b = self._apply(x, state), v  # type: ignore[assignment]
            alive = bounded(alive, a)
        for key, y, z in _sides(state, a, b):
            move = self._move if state[key].ndim == x.ndim else self._move_diagonal
            move(key, y, z, alive, state, step)
        if self.updates(step) % 100 == 0:
            _even_out(state)
        for key in ("left", "right"):
            if f"{key}_whole" in state:
                state[f"{key}_whole"].copy_(gram(state[key].mH, lower=self.dQ == "EQ"))

    def _move(self, key: str, y: Tensor, z: Tensor | None, alive: Tensor, state: State, step: Any) -> None:
        """q + change q, with the change -(lr / L) (y y^H - z z^H), or n I in the place of z z^H; by dQ."""
        q, n = state[key], y.shape[-1]
        probes = self._normal((PROBES, q.shape[-1]), y, step, key, "size")
        own, other = gram(y), None if z is None else gram(z)
        both = own if other is None else own + other
        size = spectral_norm(both, probes, _diagonal(both).real.amax(-1)) + (n if other is None else 0)
        rate = across(self._rate(size, alive, state[f"{key}_smooth"]))
        if other is None:
            change = own.mul_(-rate)
            _diagonal(change).add_(n * rate[..., 0])
        else:
            change = other.sub_(own).mul_(rate)
        match self.dQ:
            case "EQ":
                q.add_(upper_product(change.triu_(), q, upper=True))
            case "QUAD":
                _squared_step(q, change)
            case _:
                turn = self._normal(probes.shape, y, step, key, "turn")
                procrustes_step(_moved(q, change), turn, torch.where(alive, LONGEST, 0), out=q)

    def _move_diagonal(self, key: str, y: Tensor, z: Tensor | None, alive: Tensor, state: State, step: Any) -> None:
        t1 = _squares(y)
        t2 = torch.full_like(t1, y.shape[-1]) if z is None else _squares(z)
        change = self._rate((t1 + t2).amax(-1), alive, state[f"{key}_smooth"])[..., None] * (t2 - t1)
        state[key].mul_((1 + change / 2) ** 2 if self.dQ == "QUAD" else 1 + change)

    def _apply(self, x: Tensor, state: State) -> Tensor:
        for key in ("left", "right"):
            if f"{key}_whole" in state:
                whole = state[f"{key}_whole"]
                x = whole @ x if key == "left" else x @ whole
            elif key in state:
                x = x * state[key].square().unsqueeze(-1 if key == "left" else -2)
        return x

    @classmethod
    def examples(cls) -> list[Transform]:
        """Every dQ; one with both sides full, one with both diagonal, and one that whitens its momentum."""
        return [
            cls(),
            cls(dQ="EQ", max_skew=10.0, momentum=0.9),
            cls(dQ="QUAD", every=2, momentum=0.5, of="momentum"),
            cls(max_side=2, warmup=1, every=3),
        ]


def _sides(state: State, a: Tensor, b: Tensor | None) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """The factors there are, each with a and b turned so that it stands to the left."""
    for key in ("left", "right"):
        if key in state:
            yield (key, a, b) if key == "left" else (key, a.mH, None if b is None else b.mH)


def _turn(state: State, x: Tensor) -> Tensor:
    """Q_L x Q_R^H, of upper triangular or diagonal Q."""
    for key in ("left", "right"):
        if key in state:
            q, on_left = state[key], key == "left"
            y = x if on_left else x.mH
            y = y * q.unsqueeze(-1) if q.ndim < x.ndim else upper_product(q, y)
            x = y if on_left else y.mH
    return x


def _turn_back(state: State, v: Tensor, like: Tensor) -> Tensor:
    """Q_L^-H v Q_R^-1, of upper triangular or diagonal Q."""
    x = v.expand(like.shape)
    for key in ("left", "right"):
        if key in state:
            q, on_left = state[key], key == "left"
            y = x.mH if on_left else x
            solve = torch.linalg.solve_triangular
            y = y / q.unsqueeze(-2) if q.ndim < x.ndim else solve(q, y, upper=True, left=False)
            x = y.mH if on_left else y
    return x


def _diagonal(a: Tensor) -> Tensor:
    return a.diagonal(dim1=-2, dim2=-1)


def _squares(y: Tensor) -> Tensor:
    return (y.conj() * y).real.sum(-1)


def _moved(q: Tensor, change: Tensor) -> Tensor:
    """(I + change) q."""
    _diagonal(change).add_(1)
    return change @ q


def _squared_step(q: Tensor, change: Tensor) -> None:
    """The Hermitian part of (I + change / 2) q (I + change / 2), in place of q."""
    half = change.mul_(0.5)
    p = _moved(q, half) @ half
    torch.add(p, p.mH, out=q).mul_(0.5)


def _even_out(state: State) -> None:
    if "left" in state and "right" in state:
        left, right = (state[key].abs().flatten(state["unit"].ndim).amax(-1) for key in ("left", "right"))
        ratio = (right / left).sqrt()
        for key, factor in (("left", ratio), ("right", 1 / ratio)):
            state[key].mul_(factor.view(*factor.shape, *(1,) * (state[key].ndim - factor.ndim)))


def spectral_norm(a: Tensor, probes: Tensor, largest: Tensor) -> Tensor:
    """An estimate from below of the spectral norm of a Hermitian or skew-Hermitian a `(*b, n, n)`, by two rounds of two
    products each with probes `(k, n)`, which are turned towards the longest row first; good for low ranks as well.
    `largest` is the modulus of a's largest entry, `(*b,)`."""
    tiny = torch.finfo(a.dtype).tiny
    longest = torch.linalg.vector_norm(a, dim=-1).argmax(-1)
    row = torch.take_along_dim(a, across(longest), -2) / across(largest + tiny)
    v = row + torch.sgn((row * probes.conj()).sum(-1, keepdim=True)) * probes
    for _ in range(2):
        v = v @ a
        v = (v / (torch.linalg.vector_norm(v, dim=-1, keepdim=True) + tiny)) @ a
    return torch.linalg.vector_norm(v, dim=-1).amax(-1)


def procrustes_step(q: Tensor, probes: Tensor, longest: Tensor, out: Tensor) -> None:
    """q turned towards the positive definite factor of its polar decomposition: (I + aR + (aR)^2 / 2) q with
    R = (q^H - q) / |q^H - q| and a by line search on |q - I|, at most `longest`: the second order of exp(aR), unitary
    up to a^4 / 4."""
    tiny = torch.finfo(q.dtype).tiny
    turn = q.mH - q
    largest = turn.abs().amax((-2, -1))
    turn.div_(across(largest + tiny))
    turn.div_(across(spectral_norm(turn, probes, torch.ones_like(largest)) + tiny))
    image = turn @ q
    slope = _diagonal(image).real.sum(-1)
    bend = -torch.linalg.vecdot(turn.flatten(-2), image.flatten(-2)).real
    a = across(torch.where(bend < 0, torch.minimum(-slope / bend, longest), longest))
    torch.add(q, turn.mul_(a) @ image.mul_(a / 2).add_(q), out=out)
