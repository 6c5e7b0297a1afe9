"""Fira and FLORA: the inner chain's step in a subspace, and outside of it the gradient itself, scaled."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from steepest.checks import check_range
from steepest.projectors import Gaussian, Principal
from steepest.transforms.adam_scale import AdamScale
from steepest.transforms.base import Context, State, Transform
from steepest.transforms.limit_growth import limited
from steepest.transforms.momentum import Momentum
from steepest.transforms.scale_channels import channel_factors
from steepest.transforms.subspace import Projected, Subspace


@dataclasses.dataclass(frozen=True)
class ScaledResidual(Subspace):
    """scale inner(h P) P^H + f (h - h P P^H): what the subspace does not hold goes on with a plain factor. See
    `Subspace` for the other arguments.

    Args:
        factor: f: None for one factor to each row along the projected side, by how much the inner chain has scaled that
            row in the subspace, as Fira has; a number for one that is constant. With momentum m <- beta m + (1 - beta)
            h P as inner chain and f = 1 - beta this is FLORA: the gradient at hand in full, the past compressed.
        scale: of the step in the subspace.
        growth: the residual's norm may grow by this factor from step to step; None for no bound.

    Chen et al. 2024, "Fira" (2410.01623), equations 7 to 9; their code subtracts scale h P P^H instead of h P P^H from
    h, which is the same at scale 1. Hao, Cao and Mou 2024, "FLORA" (2402.03293), algorithm 2.
    """

    factor: float | None = None
    scale: float = 1.0
    growth: float | None = 1.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("scale", self.scale)
        if self.factor is not None:
            check_range("factor", self.factor)
        if self.growth is not None:
            check_range("growth", self.growth, 1)

    def own(self, h: Tensor, ctx: Context) -> State:
        """No residual yet."""
        return {} if self.growth is None else {"norm": h.real.new_zeros(h.shape[: h.ndim - ctx.ndim])}

    def lifted(self, p: Projected, state: State) -> Tensor:
        """The step in the subspace and the scaled residual."""
        factor = channel_factors(p) if self.factor is None else self.factor
        residual = (p.x - p.lift(p.low)) * factor
        if self.growth is not None:
            residual = limited(residual, state["norm"], self.growth, 2)
        return residual + self.scale * p.lift(p.step)

    @classmethod
    def examples(cls) -> list[Transform]:
        """Fira and FLORA."""
        flora = cls(Momentum(0.9), 1, Gaussian(every=2, spread=False), moved="rotate", factor=0.1, growth=None)
        return [cls(AdamScale(), 0.5), cls(AdamScale(), 1, Principal(), scale=0.25), flora]
