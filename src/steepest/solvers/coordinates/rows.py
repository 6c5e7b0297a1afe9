"""Turns of two rows in their plane: orthonormal bases, in definite and indefinite scalar products."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from steepest.manifolds.base import Manifold
from steepest.manifolds.grassmann import Grassmann
from steepest.manifolds.indefinite_stiefel import IndefiniteStiefel
from steepest.manifolds.orthogonal import Orthogonal, SpecialOrthogonal
from steepest.manifolds.stiefel import Stiefel
from steepest.solvers.coordinates.base import Coordinates, dot, match, matches, rows, with_rows
from steepest.solvers.problem import Iterate


class Rows(Coordinates):
    """Rows i and j of X, x_i -> cos t x_i + sin t x_j and x_j -> cos t x_j - sin t x_i: Givens rotations G(t) X, for
    each pair of rows. With a diagonal form A they are exp(t W) X, W of the Lie algebra of the group that leaves A as it
    is: x_i / sqrt a_i and x_j / sqrt a_j turn by cos and sin where a_i and a_j have one sign, by cosh and sinh where
    they have two.

    With X orthonormal the sum of the squares of all slopes is |G X^T - X G^T|^2 / 2: the squared norm of the gradient
    on Grassmann and under Stiefel's canonical metric, twice that on square matrices with the metric tr(U^T V). Under
    the Euclidean metric on tall matrices the directions span the tangent space, and are not orthonormal.
    """

    manifolds: ClassVar[tuple[type[Manifold], ...]] = (
        Stiefel,
        Grassmann,
        Orthogonal,
        SpecialOrthogonal,
        IndefiniteStiefel,
    )

    def fault(self, x: Tensor) -> str:
        """Diagonal forms only: others do not let pairs of rows turn by themselves."""
        if isinstance(self.manifold, IndefiniteStiefel) and (self.manifold.a - self._form(x).diag()).any():
            return "turns two rows at a time, for which `a` must be diagonal. Change to the basis of its eigenvectors"
        return ""

    def labels(self, x: Tensor) -> int:
        """Rows."""
        return x.shape[-2]

    def rounds(self, x: Tensor) -> int:
        """Of the tournament of rows."""
        return matches(x.shape[-2])

    def start(self, at: Iterate) -> tuple[Tensor, Tensor]:
        """X and G."""
        return at.x, at.covector.detach()

    def slopes(self, w: tuple[Tensor, Tensor], k: int, order: Tensor | None) -> Tensor:
        """<g_i, x_j> - <g_j, x_i>, but for factors of the form."""
        x, g = w
        i, j = match(x.shape[-2], k, order, x.device)
        up, down, _ = self._weights(x, i, j)
        return up * dot(rows(g, i), rows(x, j)) + down * dot(rows(g, j), rows(x, i))

    def turn(self, w: tuple[Tensor, Tensor], k: int, order: Tensor | None, t: Tensor) -> tuple[Tensor, Tensor]:
        """Two products with each row that turns."""
        x, g = w
        i, j = match(x.shape[-2], k, order, x.device)
        up, down, circular = self._weights(x, i, j)
        if circular is None:
            c, s = t.cos(), t.sin()
        else:
            c, s = torch.where(circular, t.cos(), t.cosh()), torch.where(circular, t.sin(), t.sinh())
        xi, xj = rows(x, i), rows(x, j)
        c, up, down = c[..., None], (s * up)[..., None], (s * down)[..., None]
        return with_rows(x, i, j, c * xi + up * xj, c * xj + down * xi), g

    def point(self, w: tuple[Tensor, Tensor]) -> Tensor:
        """X."""
        return w[0]

    def _form(self, x: Tensor) -> Tensor:
        """The diagonal of A."""
        return self.manifold.a.diagonal() if isinstance(self.manifold, IndefiniteStiefel) else x.new_ones(())

    def _weights(self, x: Tensor, i: Tensor, j: Tensor) -> tuple[Tensor | float, Tensor | float, Tensor | None]:
        """The entries (i, j) and (j, i) of W, and whether the turn is circular; None: all are."""
        if not isinstance(self.manifold, IndefiniteStiefel):
            return 1.0, -1.0, None
        a = self._form(x).to(x)
        ratio = (a[j] / a[i]).abs().sqrt()
        return a[i].sign() * ratio, -a[j].sign() / ratio, a[i] * a[j] > 0
