"""The largest row."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from steepest.norms.base import Norm, divide


@dataclasses.dataclass(frozen=True)
class Rows(Norm):
    """Largest Euclidean norm of a row; its dual map normalises every row. With weights (out, in), a row is what one
    output neuron reads: the norm of linear maps from the 2-norm to the max-norm (Pethick et al. 2025, 2502.07529).

    >>> Rows().dual(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 1.0000]])
    """

    def value(self, h: Tensor) -> Tensor:
        """Largest norm of a row."""
        return torch.linalg.vector_norm(h, dim=-1).amax(-1)

    def dual(self, g: Tensor) -> Tensor:
        """Rows divided by their norms."""
        return divide(g, torch.linalg.vector_norm(g, dim=-1, keepdim=True))

    @classmethod
    def examples(cls) -> list[Norm]:
        """The norm."""
        return [cls()]
