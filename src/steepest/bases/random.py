"""A random basis."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from steepest.bases.base import Basis, State
from steepest.linalg.basis import orthonormal_basis
from steepest.projectors.gaussian import gaussian


@dataclasses.dataclass(frozen=True)
class RandomBasis(Basis):
    """A basis drawn uniformly, once: what an entrywise method is worth where the axes mean nothing.

    It is drawn anew at each step from the seed and the size, and not kept; all matrices of a size have the same.

    >>> from steepest.bases import RandomBasis
    >>> from steepest.transforms import AdamScale, Rotate
    >>> transform = Rotate(AdamScale(), RandomBasis(seed=1))
    """

    seed: int = 0

    def matrix(self, y: Tensor, state: State) -> Tensor:
        """The one of this size."""
        n = y.shape[-2]
        return orthonormal_basis(gaussian((n, n), self.seed, y))

    @classmethod
    def examples(cls) -> list[Basis]:
        """One of them."""
        return [cls()]
