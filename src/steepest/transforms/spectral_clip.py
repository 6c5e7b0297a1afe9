"""SPECTRA: singular values bounded."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from steepest.checks import check_range
from steepest.linalg import soft_clip
from steepest.transforms.base import Context, State, Transform, as_matrix


@dataclasses.dataclass(frozen=True)
class SpectralClip(Transform):
    """h with its singular values s replaced by s / sqrt(1 + s^2 / threshold^2), all below the threshold.

    First in a chain it clips the gradient, behind another method that method's step. A vector counts as a column: its
    length is bounded the same way.

    Jiang, Semenov and Stich 2026, "SPECTRA" (2603.14315): soft spectral clipping, there too by products alone.
    """

    threshold: float = 10.0

    def __post_init__(self) -> None:
        check_range("threshold", self.threshold, open_low=True)

    def update(self, h: Tensor, state: State, ctx: Context) -> Tensor:
        """The clipped block."""
        return soft_clip(as_matrix(h, ctx.ndim), self.threshold).reshape(h.shape)

    @classmethod
    def examples(cls) -> list[Transform]:
        """Tight and loose."""
        return [cls(0.5), cls(100.0)]
