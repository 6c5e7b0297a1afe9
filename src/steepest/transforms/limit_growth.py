"""Steps that do not grow suddenly."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.transforms.base import Context, State, Transform


@dataclasses.dataclass(frozen=True)
class LimitGrowth(Transform):
    """h shortened so that its norm is at most `factor` times that of the last output.

    A zero output bounds nothing, so that a layer which had no gradient once is not held near zero ever after.

    Chen, Chen, Yang, Zhao and Zhang 2024, "Fira" (2410.01623), section 4.2.
    """

    factor: float = 1.01

    def __post_init__(self) -> None:
        check_range("factor", self.factor, 1)

    def init(self, h: Tensor, ctx: Context) -> State:
        """No output yet."""
        return {"norm": h.real.new_zeros(h.shape[: h.ndim - ctx.ndim])}

    def update(self, h: Tensor, state: State, ctx: Context) -> Tensor:
        """The shortened block."""
        return limited(h, state["norm"], self.factor, ctx.ndim)

    @classmethod
    def examples(cls) -> list[Transform]:
        """As published."""
        return [cls()]


def limited(h: Tensor, last: Tensor, factor: float, ndim: int) -> Tensor:
    """h shortened to `factor` times the norm `last` `(*b,)`, which is replaced by its own."""
    norm = torch.linalg.vector_norm(h, dim=tuple(range(h.ndim - ndim, h.ndim))) if ndim else h.abs()
    allowed = torch.where(last > 0, factor * (last + 1e-8), norm)
    shorter = torch.where(norm > allowed, allowed / norm.masked_fill(norm == 0, 1), 1)
    last.copy_(norm * shorter)
    return h * shorter.reshape(*shorter.shape, *[1] * ndim)
