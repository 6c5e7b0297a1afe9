"""Adagrad: entries divided by the root of their summed squares."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.transforms.base import Context, State, Transform


@dataclasses.dataclass(frozen=True)
class AdagradScale(Transform):
    """h / (sqrt(s) + eps), s the sum of the squared entries from `initial` on. The real and the imaginary part of a
    complex entry are two entries, as in torch.optim.Adagrad.

    Duchi, Hazan and Singer 2011.
    """

    eps: float = 1e-10
    initial: float = 0.0

    entrywise: ClassVar[bool] = True
    positive: ClassVar[tuple[str, ...]] = ("sum",)

    def __post_init__(self) -> None:
        check_range("eps", self.eps)
        check_range("initial", self.initial)

    def init(self, h: Tensor, ctx: Context) -> State:
        """The initial sum."""
        return {"sum": torch.full_like(h, self.initial)}

    def update(self, h: Tensor, state: State, ctx: Context) -> Tensor:
        """Adagrad's direction."""
        return h / state["sum"].addcmul_(h, h).sqrt().add_(self.eps)

    @classmethod
    def examples(cls) -> list[Transform]:
        """From zero and from a tenth."""
        return [cls(), cls(initial=0.1)]
