"""Adam: entries divided by the root of their averaged squares."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.transforms.base import Context, State, Transform


@dataclasses.dataclass(frozen=True)
class AdamScale(Transform):
    """m / (sqrt(v) + eps), m and v the bias-corrected averages of h and of its squared entries.

    With `amsgrad`, v is replaced by its largest value so far. Entrywise, so that it depends on the frame's choice of
    axes; every frame here varies smoothly with the point. The real and the imaginary part of a complex entry are two
    entries, each with its own moments, as in torch.optim.Adam: that depends on phases, where the average of |h|^2 would
    not, and is chosen because users of complex parameters know it.

    Kingma and Ba 2015 (1412.6980), algorithm 1; Reddi, Kale and Kumar 2018 (1904.09237).
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    amsgrad: bool = False

    entrywise: ClassVar[bool] = True
    carried: ClassVar[tuple[str, ...]] = ("first",)

    def __post_init__(self) -> None:
        check_range("betas[0]", self.betas[0], 0, 1, open_high=True)
        check_range("betas[1]", self.betas[1], 0, 1, open_high=True)
        check_range("eps", self.eps)

    def init(self, h: Tensor, ctx: Context) -> State:
        """Zero moments."""
        keys = ("first", "second", "largest") if self.amsgrad else ("first", "second")
        return {key: torch.zeros_like(h) for key in keys}

    def update(self, h: Tensor, state: State, ctx: Context) -> Tensor:
        """Adam's direction."""
        beta1, beta2 = self.betas
        m = state["first"].lerp_(h, 1 - beta1)
        v = state["second"].mul_(beta2).addcmul_(h, h, value=1 - beta2)
        if self.amsgrad:
            v = torch.maximum(state["largest"], v, out=state["largest"])
        root = v.sqrt().div_((1 - beta2**ctx.step) ** 0.5).add_(self.eps)
        return (m / root).div_(1 - beta1**ctx.step)

    @classmethod
    def examples(cls) -> list[Transform]:
        """Adam and AMSGrad."""
        return [cls(), cls((0.9, 0.99), amsgrad=True)]
