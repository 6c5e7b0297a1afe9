"""SM3: entries divided by the root of a bound of their summed squares, one number of state to a slice."""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.transforms.base import Context, State, Transform


@dataclasses.dataclass(frozen=True)
class SM3Scale(Transform):
    """h / sqrt(nu + eps), nu = min over the axes of the accumulators + h^2, and then each axis' accumulators the
    largest nu over the other axes. 0 / 0 is 0.

    A block of shape `(*b, n_1, ..., n_k)` keeps n_1 + ... + n_k numbers, one to each slice along each axis. Each nu is
    at least the sum of its entry's squares, which it is for a vector: there this is Adagrad. Of a complex h the squares
    are |h|^2, so that phases do not matter.

    Args:
        eps: the authors' guard against 0 / 0, below all squares that count.

    Anil, Gupta, Koren and Singer 2019 (1901.11150), SM3-II.
    """

    eps: float = 1e-30

    positive: ClassVar[tuple[str, ...]] = tuple(f"axis{i}" for i in range(64))  # torch has no tensors of more

    def __post_init__(self) -> None:
        check_range("eps", self.eps, open_low=True)

    def init(self, h: Tensor, ctx: Context) -> State:
        """Zero for every slice; a single number is a vector of one."""
        batch = h.shape[: h.ndim - ctx.ndim]
        sizes = h.shape[h.ndim - ctx.ndim :] or (1,)
        return {f"axis{i}": h.real.new_zeros((*batch, n)) for i, n in enumerate(sizes)}

    def update(self, h: Tensor, state: State, ctx: Context) -> Tensor:
        """SM3's direction."""
        square = (h.conj() * h).real
        if ctx.ndim < 2:
            return h / state["axis0"].add_(square.reshape(state["axis0"].shape)).add(self.eps).sqrt().reshape(h.shape)
        axes = [f"axis{i}" for i in range(ctx.ndim)]
        nu = square + functools.reduce(torch.minimum, [_along(state[key], i, ctx.ndim) for i, key in enumerate(axes)])
        for i, key in enumerate(axes):
            state[key].copy_(nu.amax([j - ctx.ndim for j in range(ctx.ndim) if j != i]))
        return h / nu.add_(self.eps).sqrt_()

    @classmethod
    def examples(cls) -> list[Transform]:
        """As published."""
        return [cls()]


def _along(s: Tensor, axis: int, ndim: int) -> Tensor:
    """Numbers `(*b, n)` along an axis of a block of `ndim` axes."""
    return s[(..., *[None] * axis, slice(None), *[None] * (ndim - 1 - axis))]
