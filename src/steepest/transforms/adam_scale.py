"""Adam: entries divided by the root of their averaged squares."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.transforms.base import Context, State, Transform


@dataclasses.dataclass(frozen=True)
class AdamScale(Transform):
    """m / (sqrt(v) + eps), m and v the bias-corrected averages of h and of its squared entries.

    Without `debias` m and v stay as they are, short at first, as in Devlin et al. 2019 (BERT, 1810.04805).
    With `amsgrad`, v is replaced by its largest value so far. Entrywise, so that it depends on the frame's choice of
    axes; every frame here varies smoothly with the point. The real and the imaginary part of a complex entry are two
    entries, each with its own moments, as in torch.optim.Adam: that depends on phases, where the average of |h|^2 would
    not, and is chosen because users of complex parameters know it.

    Kingma and Ba 2015 (1412.6980), algorithm 1; Reddi, Kale and Kumar 2018 (1904.09237).
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    amsgrad: bool = False
    debias: bool = True

    entrywise: ClassVar[bool] = True
    carried: ClassVar[tuple[str, ...]] = ("first",)
    positive: ClassVar[tuple[str, ...]] = ("second", "largest")

    def __post_init__(self) -> None:
        check_range("betas[0]", self.betas[0], 0, 1, open_high=True)
        check_range("betas[1]", self.betas[1], 0, 1, open_high=True)
        check_range("eps", self.eps)

    @property
    def keys(self) -> tuple[str, ...]:
        """Of the state."""
        return ("first", "second", "largest") if self.amsgrad else ("first", "second")

    def init(self, h: Tensor, ctx: Context) -> State:
        """Zero moments."""
        return {key: torch.zeros_like(h) for key in self.keys}

    def update(self, h: Tensor, state: State, ctx: Context) -> Tensor:
        """Adam's direction."""
        if self.debias and has_fused(h, state["first"]) and not torch.compiler.is_compiling():
            step = torch.zeros_like(h)
            moments = [[state[key]] for key in self.keys]
            count = torch.full((), ctx.step, dtype=torch.float32, device=h.device)
            self.fused(torch._fused_adam_, [step], [h], moments, [count], lr=-1.0)  # 0 - (-1) times the direction
            return step
        beta1, beta2 = self.betas
        m = state["first"].lerp_(h, 1 - beta1)
        v = state["second"].mul_(beta2).addcmul_(h, h, value=1 - beta2)
        if self.amsgrad:
            v = torch.maximum(state["largest"], v, out=state["largest"])
        if not self.debias:
            return m / v.sqrt().add_(self.eps)
        root = v.sqrt().div_((1 - beta2**ctx.step) ** 0.5).add_(self.eps)
        return (m / root).div_(1 - beta1**ctx.step)

    def fused(
        self,
        kernel: Callable[..., None],
        params: list[Tensor],
        grads: list[Tensor],
        moments: list[list[Tensor]],
        steps: list[Tensor],
        *,
        lr: float | Tensor,
        weight_decay: float = 0.0,
        maximize: bool = False,
    ) -> None:
        """Adam's step of `params` in place, by one of torch's kernels: one pass over memory for all that `update` does.

        Args:
            kernel: `torch._fused_adam_` or `torch._fused_adamw_`.
            params: tensors of one dtype and device; all that belongs to one has its layout: see `has_fused`.
            grads: their gradients.
            moments: for each of `keys`, the tensors of all of `params`.
            steps: number of each one's step, from 1, on that device.
            lr, weight_decay, maximize: as torch's optimisers.
        """
        first, second, *largest = moments
        kernel(
            params,
            grads,
            first,
            second,
            largest[0] if largest else [],
            steps,
            lr=lr,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=weight_decay,
            eps=self.eps,
            amsgrad=self.amsgrad,
            maximize=maximize,
        )

    @classmethod
    def examples(cls) -> list[Transform]:
        """Adam and AMSGrad."""
        return [cls(), cls((0.9, 0.99), amsgrad=True), cls(debias=False)]


def has_fused(h: Tensor, like: Tensor) -> bool:
    """Whether torch's fused kernels take a tensor and one like it: of full precision, on a device that has them, and of
    one layout without gaps, for they go through memory and not through indices."""
    return (
        h.dtype in (torch.float32, torch.float64)
        and h.dtype == like.dtype
        and h.device.type in ("cpu", "cuda")
        and h.stride() == like.stride()
        and (h.is_contiguous() or h.mT.is_contiguous())
    )
