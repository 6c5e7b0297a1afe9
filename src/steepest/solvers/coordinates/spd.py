"""Positive definite matrices: stretches of two columns of a factor."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from steepest.manifolds.base import Manifold
from steepest.manifolds.spd import SPD, AffineInvariant
from steepest.manifolds.spd.factors import square
from steepest.solvers.coordinates.base import Coordinates, match, matches
from steepest.solvers.problem import Iterate


class Congruences(Coordinates):
    """X = L L^T -> L exp(t E) L^T for E = e_i e_i^T, and E = (e_i e_j^T + e_j e_i^T) / sqrt 2: geodesics of the
    affine-invariant metric, in which these directions are orthonormal.

    w is L, at first the Cholesky factor, and H = L^T G L, whose entries are the slopes. Both are multiplied by
    exp(t E / 2), which changes columns i and j of L in O(n) each.

    The basis is that of Darmwal and Rajawat 2023 (2305.02041).
    """

    manifolds: ClassVar[tuple[type[Manifold], ...]] = (SPD,)

    def fault(self, x: Tensor) -> str:
        """The affine-invariant metric."""
        if isinstance(self.manifold, SPD) and isinstance(self.manifold.metric, AffineInvariant):
            return ""
        return "moves along geodesics of the affine-invariant metric: take SPD(), or PSDFixedRank() for the factor"

    def labels(self, x: Tensor) -> int:
        """Columns of L."""
        return x.shape[-1]

    def rounds(self, x: Tensor) -> int:
        """The diagonal, and the tournament of columns."""
        return 1 + matches(x.shape[-1])

    def start(self, at: Iterate) -> tuple[Tensor, Tensor]:
        """L and H: the frame, and the gradient in it."""
        return at.frame, at.unravel(at.gradient)

    def slopes(self, w: tuple[Tensor, Tensor], k: int, order: Tensor | None) -> Tensor:
        """H_ii, or sqrt 2 H_ij."""
        h = w[1]
        if k == 0:
            return h.diagonal(dim1=-2, dim2=-1)
        i, j = match(h.shape[-1], k - 1, order, h.device)
        return math.sqrt(2) * h[..., i, j]

    def turn(self, w: tuple[Tensor, Tensor], k: int, order: Tensor | None, t: Tensor) -> tuple[Tensor, Tensor]:
        """L F and F^T H F with F = exp(t E / 2)."""
        L, h = w
        if k == 0:
            f = (t / 2).exp().unsqueeze(-2)
            return L * f, f.mT * h * f
        i, j = match(h.shape[-1], k - 1, order, h.device)
        c, s = (t / math.sqrt(8)).cosh().unsqueeze(-2), (t / math.sqrt(8)).sinh().unsqueeze(-2)
        return _stretch(L, i, j, c, s), _stretch(_stretch(h, i, j, c, s).mT, i, j, c, s)

    def point(self, w: tuple[Tensor, Tensor]) -> Tensor:
        """L L^T."""
        return square(w[0])


def _stretch(m: Tensor, i: Tensor, j: Tensor, c: Tensor, s: Tensor) -> Tensor:
    """Columns i and j of m through [[c, s], [s, c]]."""
    a, b = m.index_select(-1, i), m.index_select(-1, j)
    return m.index_copy(-1, torch.cat([i, j]), torch.cat([c * a + s * b, s * a + c * b], -1))
