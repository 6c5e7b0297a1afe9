"""Positive semidefinite matrices of fixed rank."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest.linalg import polar, widen
from steepest.manifolds.base import Manifold
from steepest.manifolds.quadratic import NormalFrame, multiplier, normal_frame


@dataclasses.dataclass(frozen=True)
class PSDFixedRank(Manifold):
    """Positive semidefinite matrices X = Y Y^H `(*b, n, n)` of rank p, given by a factor Y `(*b, n, p)` of full column
    rank, of which only Y Y^H counts: Y Q is the same point for every unitary Q.

    The metric tr(U^H V) on horizontal vectors, those with Y^H V Hermitian, is the Bures-Wasserstein metric. The
    coordinates are one block: `push(Y, h) = h - Y S`, S skew with G S + S G = Y^H h - h^H Y, G = Y^H Y. Functions to be
    minimised must depend on Y Y^H alone.

    Geodesics are straight lines of Y and end where Y loses rank; the step Y + V goes on there, and reaches a matrix of
    lower rank, which is a limit of points, or one beyond it.

    Journee, Bach, Absil and Sepulchre 2010 (0807.4423) for the quotient; Massart and Absil 2020 (SIAM J. Matrix Anal.
    Appl. 41) for its logarithm and distance.

    >>> y = torch.tensor([[1.0], [0.0]])
    >>> round(PSDFixedRank().dist(y, -2 * y).item(), 4)  # of [[1, 0], [0, 0]] and four times it
    1.0
    """

    scalars: ClassVar[tuple[str, ...]] = ("real", "complex")

    def frame(self, x: Tensor) -> NormalFrame:
        """The vertical space {Y S: S skew}, which is normal to the horizontal one."""
        return normal_frame(x, x)

    def _push(self, f: NormalFrame, h: Tensor) -> Tensor:
        return h - f.x @ multiplier(f, h, -1)

    def _pull(self, f: NormalFrame, g: Tensor) -> Tensor:
        return self._push(f, g)

    def _coords(self, f: NormalFrame, v: Tensor) -> Tensor:
        return v

    def _conform(self, f: NormalFrame, h: Tensor) -> Tensor:
        return self._push(f, h)

    def _move(self, f: NormalFrame, h: Tensor) -> Tensor:
        return f.x + self._push(f, h)

    def _decay(self, f: NormalFrame, h: Tensor, rate: float) -> Tensor:
        return h + rate / 2 * f.x  # half in each factor: d(Y Y^H) = Y Y^H

    def represent(self, x: Tensor) -> Tensor:
        """X = Y Y^H, `(*b, n, n)`."""
        return x @ x.mH

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """Y + V: the end of the geodesic, where Y + t V has full rank for all t up to one."""
        return x + v

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The shortest v for which `exp(x, v)` represents what y represents: Y Q - X, Q the unitary polar factor of
        Y^H X. Where that product has not full rank there are several."""
        return y @ _alignment(y, x) - x

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """Bures-Wasserstein distance, `|Y Q - X|` at its least over unitary Q, shape `(*b,)`."""
        return torch.linalg.vector_norm(self.log(x, y), dim=(-2, -1))

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """The horizontal part at Y of v, turned as the factor nearest to X is turned to become Y. By projection: not
        the parallel transport."""
        return self.push(y, v @ _alignment(y, x).mH)

    def hessian(self, x: Tensor, g: Tensor, gv: Tensor, v: Tensor) -> Tensor:
        """The horizontal part of `gv`."""
        return self.push(x, gv)

    def project(self, x: Tensor) -> Tensor:
        """x itself: every factor of full rank is a point; one that is not is a limit of points, and stays."""
        return x

    def residual(self, x: Tensor) -> Tensor:
        """Zero; infinite where Y has not full column rank to rounding, NaN where an entry is not finite."""
        finite = (x * 0).sum((-2, -1)).real
        s = torch.linalg.svdvals(widen(torch.where(x.isfinite(), x, 0)))
        full = s[..., -1] > max(x.shape[-2:]) * torch.finfo(s.dtype).eps * s[..., 0]
        return finite + torch.where(full, 0.0, math.inf).to(finite)

    def random_point(self, shape: tuple[int, ...], *, generator: Any = None, **kwargs: Any) -> Tensor:
        """G / sqrt(n) plus the polar factor of G, for a Gaussian G: singular values between one and about three."""
        g = torch.randn(shape, generator=generator, **kwargs)
        return g / g.shape[-2] ** 0.5 + polar(g)

    def shape_error(self, x: Tensor) -> str:
        """Tall or square matrices."""
        if x.ndim >= 2 and x.shape[-2] >= x.shape[-1]:
            return ""
        return f"shape {tuple(x.shape)} is not (..., n, p) with n >= p: the rank of an n x n matrix is at most n"

    def dim(self, shape: tuple[int, ...], scalars: str = "real") -> int:
        """Entries of Y less the dimension of the unitary group of size p."""
        n, p = shape[-2:]
        return 2 * n * p - p * p if scalars == "complex" else n * p - p * (p - 1) // 2

    @classmethod
    def examples(cls) -> list[tuple[Manifold, Any]]:
        """Low rank, rank one, full rank."""
        return [(cls(), (6, 2)), (cls(), (4, 1)), (cls(), (3, 3))]


def _alignment(y: Tensor, x: Tensor) -> Tensor:
    """The unitary Q `(*b, p, p)` that brings Y Q nearest to X: the polar factor of Y^H X, completed by any where that
    has not full rank."""
    q = polar(y.mH @ x)
    u, s, vh = torch.linalg.svd(widen(q.detach()))  # of a partial isometry: ones and zeros
    return q + ((u * (s < 0.5).unsqueeze(-2)) @ vh).to(q.dtype)
