"""A matrix cut into tiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.manifolds.euclidean import Euclidean
from steepest.transforms.adam_scale import AdamScale
from steepest.transforms.base import Context, State, Transform, as_matrix, link_of, part_of_state
from steepest.transforms.momentum import Momentum
from steepest.transforms.nest import Nest
from steepest.transforms.precondition import Precondition

Region = tuple[str, slice, slice, tuple[int, int]]
"""A name, rows, columns, and the shape of the tiles in it."""


@dataclasses.dataclass(frozen=True)
class Tiled(Nest):
    """Runs an inner chain on each tile of a block alone: what costs m^3 for a side of m then costs m size^2, and what
    keeps m^2 keeps m size.

    Tiles are `size` x `size`, and smaller at the right and at the lower edge where a side is no multiple of it. Tiles
    of one shape are one batch; there are up to four such regions, whose state is under their names.

    Args:
        inner: one transform, or several in the order in which they act.
        size: longest side of a tile.

    Anil et al. 2020, "Scalable second order optimization for deep learning" (2002.09018), section 3.4.
    """

    inner: Any
    size: int = 1024

    def __post_init__(self) -> None:
        self._settle_inner()
        check_range("size", self.size, 1)

    @property
    def partial(self) -> bool:
        """As in the inner chain."""
        return any(link.partial for link in self.inner)

    def init(self, h: Tensor, ctx: Context) -> State:
        """The inner chain's for each region, as `<region>.<transform>.<key>`."""
        x = as_matrix(h, ctx.ndim)
        state: State = {}
        for region in self._regions(x):
            own = self.chain.init((_cut(x, region),), _inside(ctx))[0]
            state |= {f"{region[0]}.{key}": value for key, value in own.items()}
        return state

    def update(self, h: Tensor, state: State, ctx: Context) -> Tensor:
        """The inner chain's steps, put together."""
        x = as_matrix(h, ctx.ndim)
        out = torch.empty_like(x)
        for region in self._regions(x):
            own = part_of_state(state, region[0])
            _paste(self.chain.update((_cut(x, region),), (own,), _inside(ctx))[0], out, region)
        return out.reshape(h.shape)

    def first_order(self, key: str, state: State, like: Tensor, ctx: Context) -> Tensor:
        """Put together."""
        x = as_matrix(like, ctx.ndim)
        out = torch.empty_like(x)
        for region in self._regions(x):
            link, own, name = link_of(self.inner, key, part_of_state(state, region[0]))
            _paste(link.first_order(name, own, _cut(x, region), _inside(ctx)), out, region)
        return out.reshape(like.shape)

    def set_first_order(self, key: str, value: Tensor, state: State, ctx: Context) -> None:
        """Cut into tiles."""
        x = as_matrix(value, ctx.ndim)
        for region in self._regions(x):
            link, own, name = link_of(self.inner, key, part_of_state(state, region[0]))
            link.set_first_order(name, _cut(x, region), own, _inside(ctx))

    def _regions(self, x: Tensor) -> Iterator[Region]:
        """Those that are not empty."""
        rows, columns = (self._parts(side) for side in x.shape[-2:])
        names = (("tiles", "right"), ("lower", "corner"))
        for i, (at, m) in enumerate(rows):
            for j, (to, n) in enumerate(columns):
                if m and n:
                    yield names[i][j], at, to, (m, n)

    def _parts(self, side: int) -> list[tuple[slice, int]]:
        """Where whole tiles lie and where the rest does, and the sides of both."""
        whole = side // self.size * self.size
        return [(slice(0, whole), self.size if whole else 0), (slice(whole, side), side - whole)]

    @classmethod
    def examples(cls) -> list[Transform]:
        """Shampoo, and Adam with momentum."""
        return [cls(Precondition(), 2), cls([Momentum(0.9), AdamScale()], 3), cls(Momentum(0.9))]


def _cut(x: Tensor, region: Region) -> Tensor:
    """The tiles of a region `(*b, tiles, m, n)`."""
    _, rows, columns, (m, n) = region
    return x[..., rows, columns].unflatten(-1, (-1, n)).unflatten(-3, (-1, m)).transpose(-3, -2).flatten(-4, -3)


def _paste(tiles: Tensor, out: Tensor, region: Region) -> None:
    """Put them back."""
    _, rows, columns, (m, n) = region
    target = out[..., rows, columns]
    shape = (target.shape[-2] // m, target.shape[-1] // n)
    target.copy_(tiles.unflatten(-3, shape).transpose(-3, -2).flatten(-4, -3).flatten(-2))


def _inside(ctx: Context) -> Context:
    return dataclasses.replace(ctx, manifold=Euclidean(), frame=None, block=0)
