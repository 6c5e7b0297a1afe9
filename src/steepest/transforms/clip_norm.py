"""Steps of bounded length."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from steepest.checks import check_range
from steepest.manifolds.tensors import total
from steepest.transforms.base import Blocks, Context, State, Transform


@dataclasses.dataclass(frozen=True)
class ClipNorm(Transform):
    """h scaled down to norm `max_norm` where it is longer, each point by itself, over all its blocks.

    In coordinates the Frobenius norm is the Riemannian one: first in a chain this clips the Riemannian gradient. To
    clip by the norm over all parameters use `steepest.clip_grad_norm_`.

    Pascanu, Mikolov and Bengio 2013 (1211.5063).
    """

    max_norm: float = 1.0

    joint: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range("max_norm", self.max_norm, open_low=True)

    def update(self, h: Blocks, state: State, ctx: Context) -> Blocks:
        """The clipped blocks."""
        ndims = ctx.manifold.block_ndims
        squares = [total((b.conj() * b).real, k) for b, k in zip(h, ndims, strict=True)]
        norm = torch.stack(squares).sum(0).sqrt()
        scale = (self.max_norm / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1)
        return tuple(b * scale[(...,) + (None,) * k] for b, k in zip(h, ndims, strict=True))

    @classmethod
    def examples(cls) -> list[Transform]:
        """Tight and loose."""
        return [cls(0.1), cls(100.0)]
