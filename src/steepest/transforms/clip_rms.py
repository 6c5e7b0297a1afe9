"""Steps whose entries are of bounded size on average."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.transforms.base import Context, State, Transform, as_matrix


@dataclasses.dataclass(frozen=True)
class ClipRMS(Transform):
    """h / max(1, RMS(h) / bound), RMS(h) the root mean square of the entries, or of the moduli of complex ones; each
    block by itself.

    After a division by a second moment that lags behind the gradient, steps come out too long; this bounds them.

    Shazeer and Stern 2018, "Adafactor" (1804.04235), section 6.
    """

    bound: float = 1.0

    def __post_init__(self) -> None:
        check_range("bound", self.bound, open_low=True)

    def update(self, h: Tensor, state: State, ctx: Context) -> Tensor:
        """The clipped block."""
        x = as_matrix(h, ctx.ndim)
        length = self.bound * (x.shape[-2] * x.shape[-1]) ** 0.5
        return (x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) / length).clamp_min(1)).reshape(h.shape)

    @classmethod
    def examples(cls) -> list[Transform]:
        """As published, and tight."""
        return [cls(), cls(0.1)]
