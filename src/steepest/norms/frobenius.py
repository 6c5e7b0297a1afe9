"""The root of the summed squares."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from steepest.norms.base import Norm, divide


@dataclasses.dataclass(frozen=True)
class Frobenius(Norm):
    """Root of the sum of squared entries; its own dual. Steepest descent under it is normalised gradient descent.

    >>> Frobenius().dual(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """

    def value(self, h: Tensor) -> Tensor:
        """Root of the sum of squares."""
        return torch.linalg.vector_norm(h, dim=(-2, -1))

    def dual(self, g: Tensor) -> Tensor:
        """g divided by its norm."""
        return divide(g, torch.linalg.vector_norm(g, dim=(-2, -1), keepdim=True))

    @classmethod
    def examples(cls) -> list[Norm]:
        """The norm."""
        return [cls()]
