"""The largest column."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from steepest.norms.base import Norm, divide


@dataclasses.dataclass(frozen=True)
class Columns(Norm):
    """Largest Euclidean norm of a column; its dual map normalises every column: the norm of linear maps from the 1-norm
    to the 2-norm, natural where inputs are one-hot (Pethick et al. 2025, 2502.07529).

    >>> Columns().dual(torch.tensor([[3.0, 0.0], [4.0, 2.0]]))
    tensor([[0.6000, 0.0000],
            [0.8000, 1.0000]])
    """

    def value(self, h: Tensor) -> Tensor:
        """Largest norm of a column."""
        return torch.linalg.vector_norm(h, dim=-2).amax(-1)

    def dual(self, g: Tensor) -> Tensor:
        """Columns divided by their norms."""
        return divide(g, torch.linalg.vector_norm(g, dim=-2, keepdim=True))

    @classmethod
    def examples(cls) -> list[Norm]:
        """The norm."""
        return [cls()]
