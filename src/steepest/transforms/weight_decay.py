"""Shrinking the point itself."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from steepest.checks import check_range
from steepest.manifolds.tensors import as_tuple
from steepest.transforms.base import Blocks, Context, State, Transform


@dataclasses.dataclass(frozen=True)
class WeightDecay(Transform):
    """h plus `rate` times the coordinates of the tangent part of the point itself.

    Last in a chain it is decoupled decay: the step shrinks the matrix by the factor 1 - lr * rate, to first order in
    lr on a curved manifold. What shrinks is the matrix that the point stands for: W for a plain weight, W = B A (half
    in each factor) on FixedRank, X along a geodesic on SPD. Orthonormal, unit and subspace points cannot shrink, and
    are left alone. First in a chain it is L2 regularisation.

    Loshchilov and Hutter 2019 (1711.05101).
    """

    rate: float = 0.01

    joint: ClassVar[bool] = True
    of_point: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range("weight_decay", self.rate)

    def update(self, h: Blocks, state: State, ctx: Context) -> Blocks:
        """h with the decay added."""
        if self.rate == 0:
            return h
        return as_tuple(ctx.manifold._decay(ctx.frame, h if len(h) > 1 else h[0], self.rate))

    @classmethod
    def examples(cls) -> list[Transform]:
        """A tenth, and none."""
        return [cls(0.1), cls(0.0)]
