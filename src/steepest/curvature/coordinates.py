"""The coordinates of all points of an optimiser as one vector of real numbers, in which the metric is flat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steepest.linalg.precision import widen
from steepest.manifolds.euclidean import Euclidean
from steepest.manifolds.tensors import as_tuple
from steepest.optim.axes import from_matrix
from steepest.optim.constrain import Constraint
from steepest.optim.engine import Optimizer
from steepest.optim.listing import names_of
from steepest.optim.point import Point

Tensors = Sequence[Tensor]


def points_of(optimizer: torch.optim.Optimizer) -> list[Point]:
    """The points that an optimiser moves: those of one of ours, and of another one its tensors, which are plain. What
    is frozen is left out."""
    points: list[Point] = []
    for group in optimizer.param_groups:
        if isinstance(optimizer, Optimizer):
            points += optimizer._points(group)
        else:
            for name, p in zip(names_of(group), group["params"], strict=True):
                points.append(Point((p,), (name,), Constraint(Euclidean(p.ndim), (None,), {})))
    return [point for point in points if all(p.requires_grad and p.numel() for p in point.params)]


class Coordinates:
    """The coordinates of points, block after block in one vector `(n,)`; a complex number is two real ones.

    Everything here is linear but `move`, and may be mapped over a batch by `torch.func.vmap`.

    Args:
        points: the points.
        tensors: their tensors, where the points are to stand elsewhere than they do.
    """

    def __init__(self, points: Sequence[Point], tensors: Tensors | None = None) -> None:
        self.points = list(points)
        self.params = [p for point in points for p in point.params]
        with torch.no_grad():
            self.x = [c.constraint.point(part) for c, part in self._each(tensors or self.params)]
            self.frames = [p.constraint.manifold.frame(x) for p, x in zip(points, self.x, strict=True)]
            zeros = [torch.zeros_like(t) for t in self.params]
            blocks = [as_tuple(self._pulled(i, self.gradient(i, zeros))) for i in range(len(self.points))]
        self._blocks = [[torch.empty_like(b, device="meta") for b in of_point] for of_point in blocks]
        self.sizes = [sum(_count(b) for b in of_point) for of_point in blocks]
        """Numbers of each point."""

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return sum(self.sizes)

    @property
    def flat(self) -> bool:
        """Whether all points are plain tensors, whose coordinates stay what they are wherever they go."""
        return all(isinstance(p.constraint.manifold, Euclidean) for p in self.points)

    def pull(self, grads: Tensors) -> Tensor:
        """Coordinates of a gradient, given by its tensors."""
        parts = [b for i in range(len(self.points)) for b in as_tuple(self._pulled(i, self.gradient(i, grads)))]
        return torch.cat([_real(b) for b in parts])

    def push(self, h: Tensor) -> list[Tensor]:
        """The tangent vector of coordinates, as changes of the tensors, in at least float32."""
        out: list[Tensor] = []
        for point, f, blocks in zip(self.points, self.frames, self.split(h), strict=True):
            v = as_tuple(point.constraint.manifold._push(f, blocks))
            patterns = zip(v, point.constraint.matrix, point.params, strict=True)
            out += [from_matrix(part, pattern, t) for part, pattern, t in patterns]
        return out

    def coords(self, changes: Tensors) -> Tensor:
        """Coordinates of a tangent vector, given by changes of the tensors."""
        pairs = [(self.frames[i], p.constraint.manifold, self.gradient(i, changes)) for i, p in enumerate(self.points)]
        return torch.cat([_real(b) for f, manifold, v in pairs for b in as_tuple(manifold._coords(f, v))])

    def split(self, h: Tensor) -> list[Any]:
        """The coordinates of each point, as its manifold has them."""
        return [self.of_point(i, part) for i, part in enumerate(h.split(self.sizes))]

    def of_point(self, i: int, h: Tensor) -> Any:
        """The coordinates of the i-th point, given by its part of the vector, as its manifold has them."""
        parts = h.split([_count(b) for b in self._blocks[i]])
        blocks = tuple(_shaped(part, b) for part, b in zip(parts, self._blocks[i], strict=True))
        return blocks if len(blocks) > 1 else blocks[0]

    def gradient(self, i: int, grads: Tensors) -> Any:
        """The Euclidean gradient (or tangent vector) of the i-th point, of those of all tensors, as its manifold has
        it."""
        point, own = self._each(grads)[i]
        return point.constraint.point(own)

    def moved(self, h: Tensor) -> list[Any]:
        """Where the points come to by the retraction of the coordinates h."""
        triples = zip(self.points, self.frames, self.split(h), strict=True)
        return [p.constraint.manifold._move(f, blocks) for p, f, blocks in triples]

    def write(self, places: Sequence[Any]) -> None:
        """Put the points somewhere."""
        for point, x in zip(self.points, places, strict=True):
            point.constraint.write(point.params, x)

    def carried(self, to: Coordinates, h: Tensor) -> Tensor:
        """Coordinates here as coordinates at another place of the same points."""
        if self.flat:
            return h
        quads = zip(self.points, self.frames, to.frames, self.split(h), strict=True)
        moved = [p.constraint.manifold._carry(f, g, blocks) for p, f, g, blocks in quads]
        return torch.cat([_real(b) for blocks in moved for b in as_tuple(blocks)])

    def _pulled(self, i: int, gradient: Any) -> Any:
        return self.points[i].constraint.manifold._pull(self.frames[i], gradient)

    def _each(self, tensors: Tensors) -> list[tuple[Point, Tensors]]:
        out: list[tuple[Point, Tensors]] = []
        rest = list(tensors)
        for point in self.points:
            out.append((point, rest[: len(point.params)]))
            rest = rest[len(point.params) :]
        return out


def _count(block: Tensor) -> int:
    return block.numel() * (2 if block.is_complex() else 1)


def _real(block: Tensor) -> Tensor:
    block = widen(block)
    return (torch.view_as_real(block.resolve_conj()) if block.is_complex() else block).reshape(-1)


def _shaped(h: Tensor, block: Tensor) -> Tensor:
    if block.is_complex():
        return torch.view_as_complex(h.reshape(*block.shape, 2).to(block.real.dtype))
    return h.reshape(block.shape).to(block.dtype)
