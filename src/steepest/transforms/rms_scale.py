"""Entries divided by the root of their averaged squares."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.transforms.base import Context, State, Transform


@dataclasses.dataclass(frozen=True)
class RMSScale(Transform):
    """h / (sqrt(v) + eps), v the average of the squared entries: RMSprop's division, and AdaMuon's after
    orthogonalisation. The average starts at zero and is not corrected for that.

    Tieleman and Hinton 2012, "RMSprop".
    """

    beta: float = 0.95
    eps: float = 1e-8

    entrywise: ClassVar[bool] = True
    positive: ClassVar[tuple[str, ...]] = ("second",)

    def __post_init__(self) -> None:
        check_range("beta", self.beta, 0, 1, open_high=True)
        check_range("eps", self.eps)

    def init(self, h: Tensor, ctx: Context) -> State:
        """Zero squares."""
        return {"second": torch.zeros_like(h)}

    def update(self, h: Tensor, state: State, ctx: Context) -> Tensor:
        """The divided block."""
        v = state["second"].mul_(self.beta).addcmul_(h, h, value=1 - self.beta)
        return h / v.sqrt().add_(self.eps)

    @classmethod
    def examples(cls) -> list[Transform]:
        """AdaMuon's."""
        return [cls()]
