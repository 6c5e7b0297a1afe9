"""The discrete cosine transform as a basis."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from steepest.bases.base import Basis, State
from steepest.linalg.dct import dct_matrix


@dataclasses.dataclass(frozen=True)
class CosineBasis(Basis):
    """Half waves of the discrete cosine transform of type II, the slowest first: one basis for all matrices of a size,
    and no state.

    Ahmed, Natarajan and Rao 1974.

    >>> from steepest.bases import CosineBasis
    >>> from steepest.transforms import AdamScale, Rotate
    >>> transform = Rotate(AdamScale(), CosineBasis())
    """

    def matrix(self, y: Tensor, state: State) -> Tensor:
        """The waves."""
        return dct_matrix(y.shape[-2], y)

    @classmethod
    def examples(cls) -> list[Basis]:
        """The only one."""
        return [cls()]
