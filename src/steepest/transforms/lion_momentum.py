"""Lion's two averages from one buffer."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.transforms.base import Context, State, Transform


@dataclasses.dataclass(frozen=True)
class LionMomentum(Transform):
    """beta1 m + (1 - beta1) h; after that m <- beta2 m + (1 - beta2) h.

    What is stepped along forgets faster than what is kept. Lion takes the signs of it.

    Chen et al. 2023 (2302.06675), algorithm 2.
    """

    betas: tuple[float, float] = (0.9, 0.99)

    carried: ClassVar[tuple[str, ...]] = ("buffer",)

    def __post_init__(self) -> None:
        check_range("betas[0]", self.betas[0], 0, 1)
        check_range("betas[1]", self.betas[1], 0, 1, open_high=True)

    def init(self, h: Tensor, ctx: Context) -> State:
        """A zero average."""
        return {"buffer": torch.zeros_like(h)}

    def update(self, h: Tensor, state: State, ctx: Context) -> Tensor:
        """The faster average."""
        out = h.lerp(state["buffer"], self.betas[0])
        state["buffer"].lerp_(h, 1 - self.betas[1])
        return out

    @classmethod
    def examples(cls) -> list[Transform]:
        """As published."""
        return [cls()]
