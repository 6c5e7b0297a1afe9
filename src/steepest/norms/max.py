"""The largest entry."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from steepest.norms.base import Norm


@dataclasses.dataclass(frozen=True)
class Max(Norm):
    """Largest absolute entry; its dual map is the sign: steepest descent under it is signSGD. The sign of a complex
    entry is the number of modulus one in its direction.

    Bernstein, Wang, Azizzadenesheli and Anandkumar 2018 (1802.04434).

    >>> Max().dual(torch.tensor([[2.0, -0.5]]))
    tensor([[ 1., -1.]])
    """

    def value(self, h: Tensor) -> Tensor:
        """Largest absolute entry."""
        return h.abs().amax((-2, -1))

    def dual(self, g: Tensor) -> Tensor:
        """Signs of the entries."""
        return torch.sgn(g)

    @classmethod
    def examples(cls) -> list[Norm]:
        """The norm."""
        return [cls()]
