"""Averages of past gradients."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.transforms.base import Context, State, Transform


@dataclasses.dataclass(frozen=True)
class Momentum(Transform):
    """m <- beta m + (1 - beta) h, the exponential average, or with `ema=False` the sum m <- beta m + h of torch's SGD.

    With `nesterov` the result looks one step ahead: beta m + (1 - beta) h, or beta m + h. On a manifold m is carried
    along with the point.

    Polyak 1964; Nesterov 1983; in the form of Sutskever, Martens, Dahl and Hinton 2013.
    """

    beta: float = 0.95
    nesterov: bool = False
    ema: bool = True

    carried: ClassVar[tuple[str, ...]] = ("buffer",)

    def __post_init__(self) -> None:
        check_range("momentum beta", self.beta, 0, 1, open_high=True)

    def init(self, h: Tensor, ctx: Context) -> State:
        """A zero average."""
        return {"buffer": torch.zeros_like(h)}

    def update(self, h: Tensor, state: State, ctx: Context) -> Tensor:
        """The average, or Nesterov's look ahead."""
        m = state["buffer"]
        if self.ema:
            m.lerp_(h, 1 - self.beta)
            return h.lerp(m, self.beta) if self.nesterov else m
        m.mul_(self.beta).add_(h)
        return h.add(m, alpha=self.beta) if self.nesterov else m

    @classmethod
    def examples(cls) -> list[Transform]:
        """Average and sum, with and without look ahead."""
        return [cls(), cls(0.9, nesterov=True), cls(0.9, nesterov=True, ema=False)]
