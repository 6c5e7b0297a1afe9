"""Entries of a matrix that moves freely."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from steepest.manifolds.base import Manifold
from steepest.manifolds.euclidean import Euclidean
from steepest.manifolds.psd_fixed_rank import PSDFixedRank
from steepest.solvers.coordinates.base import Coordinates
from steepest.solvers.problem import Iterate


class Entries(Coordinates):
    """Single entries of x; a round is a column. Of X = Y Y^T under the Bures-Wasserstein metric these are the entries
    of the factor Y: the gradient of a function of X is horizontal, so that the squares of its slopes sum to the square
    of its norm.

    The authors' code moves any number of entries along one gradient; columns are chosen here.
    """

    manifolds: ClassVar[tuple[type[Manifold], ...]] = (PSDFixedRank, Euclidean)

    def fault(self, x: Tensor) -> str:
        """A column needs an axis."""
        return "" if x.ndim else "moves columns, and a single number has none"

    def labels(self, x: Tensor) -> int:
        """Columns."""
        return x.shape[-1]

    def rounds(self, x: Tensor) -> int:
        """Columns."""
        return x.shape[-1]

    def start(self, at: Iterate) -> tuple[Tensor, Tensor]:
        """x and G."""
        return at.x, at.covector.detach()

    def slopes(self, w: tuple[Tensor, Tensor], k: int, order: Tensor | None) -> Tensor:
        """Entries of G."""
        return w[1].select(-1, _column(k, order))

    def turn(self, w: tuple[Tensor, Tensor], k: int, order: Tensor | None, t: Tensor) -> tuple[Tensor, Tensor]:
        """One sum for each entry."""
        x, g = w
        k = _column(k, order)
        return torch.cat([x[..., :k], x[..., k : k + 1] + t.unsqueeze(-1), x[..., k + 1 :]], -1), g

    def point(self, w: tuple[Tensor, Tensor]) -> Tensor:
        """x."""
        return w[0]


def _column(k: int, order: Tensor | None) -> int:
    return k if order is None else int(order[k])
