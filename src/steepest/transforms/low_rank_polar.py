"""Dion: the polar factor of momentum in a subspace that follows it, with what is left out fed back."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.transforms.base import Context, State, Transform, as_matrix
from steepest.transforms.ranks import check_rank, rank_of


@dataclasses.dataclass(frozen=True)
class LowRankPolar(Transform):
    """P Q^H of rank r, orthonormal P and columns of length one in Q, that follow the leading singular vectors of the
    momentum by one step of power iteration each time; no polynomial, no SVD.

    M <- M + h, P = orth(M Q), R = M^H P, M <- M - (1 - beta) P R^H, Q = R with columns of length one. Only the part of
    M that the step has used decays; the rest stays for later steps (error feedback).

    Args:
        rank: r as an int, or as a float up to 1.0 its share of the shorter side, rounded up: 1 is rank one, 1.0 full
            rank. It is read when the state is made.
        beta: factor by which the used part decays.
        eps: added to the lengths of R's columns.

    Q lies on the shorter side. It starts as the same Gaussian matrix for all blocks of one shape, from a fixed seed, so
    that a run can be repeated.

    Ahn, Xu, Abreu and Langford 2025, "Dion" (2504.05295), algorithm 1, which does not
    transpose wide matrices; the authors' code does, and so does this.
    """

    rank: float = 1.0
    beta: float = 0.95
    eps: float = 1e-8

    carried: ClassVar[tuple[str, ...]] = ("buffer",)

    def __post_init__(self) -> None:
        check_rank(self.rank)
        check_range("beta", self.beta, 0, 1)
        check_range("eps", self.eps)

    def init(self, h: Tensor, ctx: Context) -> State:
        """No momentum, a random Q."""
        x = _tall(as_matrix(h, ctx.ndim))
        n = x.shape[-1]
        r = rank_of(self.rank, x.shape)
        generator = torch.Generator().manual_seed(n)
        start = torch.randn(n, r, generator=generator, dtype=x.dtype).to(x.device)
        return {"buffer": torch.zeros_like(h), "basis": start.expand(*x.shape[:-2], n, r).clone()}

    def update(self, h: Tensor, state: State, ctx: Context) -> Tensor:
        """The step of rank r."""
        buffer, basis = state["buffer"].add_(h), state["basis"]
        rows = as_matrix(buffer, ctx.ndim)
        m = _tall(rows)
        alive = (m != 0).any(-1, keepdim=True).any(-2, keepdim=True)
        p = torch.linalg.qr(m @ basis)[0] * alive
        r = m.mH @ p
        left = m - (1 - self.beta) * (p @ r.mH)
        q = torch.where(alive, self._unit_columns(r, m.shape[-2]), basis)
        buffer.copy_((left if m is rows else left.mH).reshape(h.shape))
        basis.copy_(q)
        step = p @ q.mH
        return (step if m is rows else step.mH).reshape(h.shape)

    def _unit_columns(self, r: Tensor, rows: int) -> Tensor:
        """Columns over their lengths; zero where they are rounding's alone. Where the momentum has a lower rank than
        the step, QR fills P with whatever is orthogonal to it, and R is there what rounding leaves of nothing; a column
        of Q that is zero finds a direction again as soon as there is one."""
        lengths = torch.linalg.vector_norm(r, dim=-2, keepdim=True)
        rounding = 4 * (rows + r.shape[-2]) ** 0.5 * torch.finfo(r.dtype).eps
        real = lengths > rounding * lengths.amax(-1, keepdim=True)
        return torch.where(real, r / (lengths + self.eps), 0)

    @classmethod
    def examples(cls) -> list[Transform]:
        """Full rank, half of it, and rank one."""
        return [cls(), cls(0.5), cls(1)]


def _tall(x: Tensor) -> Tensor:
    return x if x.shape[-2] >= x.shape[-1] else x.mH
