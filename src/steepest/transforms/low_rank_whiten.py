"""PSGD LRA: all entries of a block whitened together, by a diagonal and a few directions."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.linalg.products import add_product
from steepest.transforms.base import Context, State, Transform, as_matrix
from steepest.transforms.whiten import Whiten, across, bounded


@dataclasses.dataclass(frozen=True)
class LowRankWhiten(Whiten):
    """Q^H Q h with Q = (I + U V^H) diag(d), of the block's N entries as one vector; U and V are `(N, rank)`: see
    `Whiten`.

    Args:
        rank: of U and V; less than N counts.
        lr, beta, damping, momentum, of, every, warmup, initial, seed: see `Whiten`.

    An update moves d, and U and V by turns (in the authors' code at random). Before it U and V are brought nearer to
    U^H U = V^H V. State: N (2 rank + 1) numbers.

    Each block of each point has a Q of its own; the authors' code has one over all parameters of a model together,
    which finds what goes across them as well, and makes a rank of 10 a smaller thing.

    Li 2022 (2211.04422); Pooladzandi and Li 2024 (2402.04553), and the authors' code.

    >>> from steepest.transforms import LowRankWhiten
    >>> LowRankWhiten(rank=4, momentum=0.9).carried
    ('average',)
    """

    rank: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("rank", self.rank, 1)

    def _matrix(self, h: Tensor, ctx: Context) -> Tensor:
        return as_matrix(h, ctx.ndim).flatten(-2).unsqueeze(-1)

    def _start(self, x: Tensor) -> State:
        *batch, size, _ = x.shape
        rank = max(1, min(self.rank, size - 1))
        state = {"d": x.real.new_ones(*batch, size, 1)}
        for key in ("U", "V"):
            start = self._normal((size, rank), x, 0, "start", key)
            start = start * 0.1**0.5 / torch.linalg.vector_norm(start)
            state[key] = start.expand(*batch, size, rank).clone()
        return state | {f"{key}_smooth": x.real.new_zeros(batch) for key in ("U", "V", "d")}

    def _fit(self, x: Tensor, noise: Tensor, v: Tensor | None, alive: Tensor, state: State, step: Any) -> None:
        (U, V), d = _balanced(state["U"], state["V"]), state["d"]
        v = noise if v is None else v
        core = V.mH @ U
        core.diagonal(dim1=-2, dim2=-1).add_(1)
        LU, pivots, _ = torch.linalg.lu_factor_ex(core)
        a = _times(U, V, d * x)
        b = v / d
        b = b - V @ torch.linalg.lu_solve(LU, pivots, U.mH @ b, adjoint=True)  # Q^-H v
        c = (b - U @ torch.linalg.lu_solve(LU, pivots, V.mH @ b)) / d  # P^-1 v
        p = d * _times(V, U, a)
        alive = bounded(alive, a, b)
        up, down = ((y.conj() * z).real for y, z in ((x, p), (v, c)))
        alive_d = bounded(alive, up, down)
        size = up.abs().amax((-2, -1)) + down.abs().amax((-2, -1))
        state["d"].sub_(across(self._rate(size, alive_d, state["d_smooth"])) * (up - down) * d)

        key, still = ("U", V) if self.updates(step) % 2 else ("V", U)
        a_low, b_low = a.mH @ still, b.mH @ still
        size = _length(a) * _length(still @ a_low.mH) + _length(b) * _length(still @ b_low.mH)
        rate = across(self._rate(size, alive, state[f"{key}_smooth"]))
        if key == "U":
            change = a @ (a_low @ core) - b @ (b_low @ core)
        else:
            change = (a + V @ a_low.mH) @ a_low - (b + V @ b_low.mH) @ b_low
        state["U"].copy_(U)
        state["V"].copy_(V)
        state[key].sub_(rate * change)

    def _apply(self, x: Tensor, state: State) -> Tensor:
        U, V, d = state["U"], state["V"], state["d"]
        return d * _times(V, U, _times(U, V, d * x))

    @classmethod
    def examples(cls) -> list[Transform]:
        """As published, and of rank one with momentum."""
        return [cls(), cls(rank=1, momentum=0.9, every=2)]


def _times(U: Tensor, V: Tensor, x: Tensor) -> Tensor:
    """(I + U V^H) x."""
    return add_product(x, U, V.mH @ x)


def _length(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=(-2, -1))


def _balanced(U: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """U T and V T^-H, to fourth order in the step: of the same length, and nearer to U^H U = V^H V."""
    uu, vv = U.mH @ U, V.mH @ V
    u2, v2 = (across(t.diagonal(dim1=-2, dim2=-1).real.sum(-1)) for t in (uu, vv))
    tiny = torch.finfo(u2.dtype).tiny
    rho = ((u2 + tiny) / (v2 + tiny)) ** 0.25
    uu, vv = uu / rho**2, vv * rho**2
    e = 0.1 * (uu - vv) / (u2 / rho**2 + v2 * rho**2 + tiny)
    half = 0.5 * e @ e
    U, V = U / rho, V * rho
    return add_product(U, U, half - e), add_product(V, V, half + e)
