"""Steps relative to the size of what they change."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.manifolds.euclidean import Euclidean
from steepest.transforms.base import Context, State, Transform, as_matrix


@dataclasses.dataclass(frozen=True)
class ParameterScale(Transform):
    """h times max(eps, RMS(x)), RMS(x) the root mean square of the entries of the plain tensor x that is to be changed,
    so that lr is a relative length; `eps` lets what starts at zero leave it.

    With `capped` the step's length is min(lr, 1/sqrt(t)) at step t instead of lr, as torch.optim.Adafactor has it.

    On a manifold, and on a product of such, the first factor is 1. The size of a point is the manifold's there: fixed
    for orthonormal and unit points, and in a metric that is invariant under scaling (SPD, FixedRank) a step of given
    length in the frame is relative already.

    Shazeer and Stern 2018, "Adafactor" (1804.04235), section 8.
    """

    eps: float = 1e-3
    capped: bool = False

    of_point: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range("eps", self.eps)

    def update(self, h: Tensor, state: State, ctx: Context) -> Tensor:
        """The scaled block."""
        if self.capped:
            longest = ctx.lr * ctx.step**0.5  # min(1, 1/(lr sqrt t)), and defined where lr is zero
            h = h / (longest.clamp_min(1) if isinstance(longest, Tensor) else max(longest, 1))
        if not isinstance(ctx.manifold, Euclidean):
            return h
        x = as_matrix(ctx.frame, ctx.ndim)
        rms = torch.linalg.vector_norm(x, dim=(-2, -1)) / (x.shape[-2] * x.shape[-1]) ** 0.5
        return h * rms.clamp_min(self.eps)[(...,) + (None,) * ctx.ndim]

    @classmethod
    def examples(cls) -> list[Transform]:
        """As published, and as in torch."""
        return [cls(), cls(capped=True)]
