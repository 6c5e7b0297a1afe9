"""Steps whose entries have a given size."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.transforms.base import Context, State, Transform, as_matrix


@dataclasses.dataclass(frozen=True)
class MatchRMS(Transform):
    """h scaled so that the root mean square of its entries is `rms`; zero stays zero.

    0.2 is about what AdamW's steps have, so that its learning rates hold (Liu et al. 2025, 2502.16982).
    """

    rms: float = 0.2
    eps: float = 1e-8
    """Added to the norm that h is divided by."""

    def __post_init__(self) -> None:
        check_range("rms", self.rms, open_low=True)
        check_range("eps", self.eps, open_low=True)

    def update(self, h: Tensor, state: State, ctx: Context) -> Tensor:
        """The scaled block."""
        x = as_matrix(h, ctx.ndim)
        length = self.rms * (x.shape[-2] * x.shape[-1]) ** 0.5
        return (x * (length / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + self.eps))).reshape(h.shape)

    @classmethod
    def examples(cls) -> list[Transform]:
        """As AdamW's."""
        return [cls()]
