"""Matrices with unit columns."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from torch import Tensor

from steepest.manifolds.base import Manifold
from steepest.manifolds.sphere import UnitSlices


@dataclasses.dataclass(frozen=True)
class Oblique(UnitSlices):
    """Matrices `(*b, n, p)` whose p columns are unit vectors (dictionaries, normalised weights), real or complex.

    The coordinates are those of all matrices, and the frame removes from each column its part along itself:
    `push(X, h) = h - X diag(Re X^H h)`. A product of spheres.

    Absil and Gallivan 2006, Joint diagonalization on the oblique manifold for independent component analysis.

    >>> x = Oblique().project(torch.ones(4, 2))
    >>> x[0, 0].item()
    0.5
    """

    axis: ClassVar[int] = -2
    ndim: ClassVar[int] = 2

    def shape_error(self, x: Tensor) -> str:
        """Matrices."""
        return "" if x.ndim >= 2 else f"a point of Oblique() is a matrix (n, p), got shape {tuple(x.shape)}"

    @classmethod
    def examples(cls) -> list[tuple[Manifold, Any]]:
        """Tall, wide, one column."""
        return [(cls(), (5, 3)), (cls(), (2, 4)), (cls(), (3, 1))]
