"""Symplectic bases: transvections and squeezes."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from steepest.manifolds.base import Manifold
from steepest.manifolds.symplectic_stiefel import SymplecticStiefel
from steepest.solvers.coordinates.base import Coordinates, dot, match, matches, rows, with_rows
from steepest.solvers.problem import Iterate

SINGLE = 3
"""Directions within one plane of conjugate coordinates."""
DOUBLE = 4
"""Directions that couple two planes."""


class Transvections(Coordinates):
    """D = S J X for S = e_i e_j^T + e_j e_i^T (e_i e_i^T where i = j): exp(t S J) adds t times row j of J X to row i,
    and t times row i of J X to row j. Where j = i + n is the conjugate of i, row i is multiplied by exp(-t) instead,
    and row j by exp(t). These are all n (2 n + 1) directions of the symplectic Lie algebra.

    A label is a plane of two conjugate rows, i and i + n: what couples two planes reads and writes all four rows.

    The authors' code leaves out i = j, without which the directions do not span the tangent space (n = 1: a squeeze,
    and nothing that turns).
    """

    manifolds: ClassVar[tuple[type[Manifold], ...]] = (SymplecticStiefel,)

    def labels(self, x: Tensor) -> int:
        """Planes."""
        return x.shape[-2] // 2

    def rounds(self, x: Tensor) -> int:
        """Three within planes, and four of each round of their tournament."""
        return SINGLE + DOUBLE * matches(self.labels(x))

    def start(self, at: Iterate) -> tuple[Tensor, Tensor]:
        """X and G."""
        return at.x, at.covector.detach()

    def slopes(self, w: tuple[Tensor, Tensor], k: int, order: Tensor | None) -> Tensor:
        """<g_i, (J X)_j> + <g_j, (J X)_i>, once where i = j."""
        x, g = w
        i, j = self._rows(x, k, order)
        slopes = dot(rows(g, i), _conjugate(x, j))
        return slopes if k < SINGLE - 1 else slopes + dot(rows(g, j), _conjugate(x, i))

    def turn(self, w: tuple[Tensor, Tensor], k: int, order: Tensor | None, t: Tensor) -> tuple[Tensor, Tensor]:
        """One product with each row that moves."""
        x, g = w
        i, j = self._rows(x, k, order)
        t = t.unsqueeze(-1)
        if k == SINGLE - 1:
            return with_rows(x, i, j, rows(x, i) * (-t).exp(), rows(x, j) * t.exp()), g
        xi = rows(x, i) + t * _conjugate(x, j)
        if k < SINGLE - 1:
            return x.index_copy(-2, i, xi), g
        return with_rows(x, i, j, xi, rows(x, j) + t * _conjugate(x, i)), g

    def point(self, w: tuple[Tensor, Tensor]) -> Tensor:
        """X."""
        return w[0]

    def _rows(self, x: Tensor, k: int, order: Tensor | None) -> tuple[Tensor, Tensor]:
        n = self.labels(x)
        if k < SINGLE:
            i = torch.arange(n, device=x.device) if order is None else order.to(x.device)
            return (i, i + n) if k == SINGLE - 1 else (i + k * n, i + k * n)
        turn, kind = divmod(k - SINGLE, DOUBLE)
        i, j = match(n, turn, order, x.device)
        return i + kind // 2 * n, j + kind % 2 * n


def _conjugate(x: Tensor, i: Tensor) -> Tensor:
    """Rows i of J X: the row n below, or the negative of the row n above."""
    n = x.shape[-2] // 2
    sign = torch.where(i < n, 1.0, -1.0).to(x)
    return sign.unsqueeze(-1) * rows(x, (i + n) % (2 * n))
