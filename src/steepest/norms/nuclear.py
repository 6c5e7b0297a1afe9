"""The sum of the singular values."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from steepest.linalg import widen
from steepest.norms.base import Norm


@dataclasses.dataclass(frozen=True)
class Nuclear(Norm):
    """Sum of the singular values; its dual map is u v^H of the largest one, a step of rank one (Frank-Wolfe's).

    >>> Nuclear().dual(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    tensor([[1., 0.],
            [0., 0.]])
    """

    def value(self, h: Tensor) -> Tensor:
        """Sum of the singular values."""
        return torch.linalg.matrix_norm(h, "nuc")

    def dual(self, g: Tensor) -> Tensor:
        """Outer product of the leading singular vectors."""
        u, s, vh = torch.linalg.svd(widen(g), full_matrices=False)
        return torch.where(s[..., :1, None] > 0, u[..., :, :1] @ vh[..., :1, :], 0).to(g.dtype)

    @classmethod
    def examples(cls) -> list[Norm]:
        """The norm."""
        return [cls()]
