"""Unit vectors."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest.manifolds.base import Manifold


class UnitSlices(Manifold):
    """Tensors whose slices along `axis` have Euclidean norm one, under the Frobenius inner product.

    The frame at x removes from each slice its part along x. Every slice moves on a sphere of its own.
    """

    axis: ClassVar[int]

    def _dot(self, x: Tensor, y: Tensor) -> Tensor:
        return (x * y).sum(self.axis, keepdim=True)

    def _length(self, x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x, dim=self.axis, keepdim=True)

    def _push(self, x: Tensor, h: Tensor) -> Tensor:
        return h - x * self._dot(x, h)

    def _pull(self, x: Tensor, g: Tensor) -> Tensor:
        return g - x * self._dot(x, g)

    def _coords(self, x: Tensor, v: Tensor) -> Tensor:
        return v

    def _conform(self, x: Tensor, h: Tensor) -> Tensor:
        return self._push(x, h)

    def _move(self, x: Tensor, h: Tensor) -> Tensor:
        return self.project(x + self._push(x, h))

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """Great circle: `cos|v| x + sin|v| v/|v|`."""
        angle = self._length(v)
        return x * angle.cos() + v * torch.sinc(angle / torch.pi)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The v of least norm with `exp(x, v) == y`; not unique, and not reliable, for antipodal points."""
        v = y - x * self._dot(x, y)
        return v * _angle_over_sine(self._length(v), self._dot(x, y))

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """Root of the summed squares of the slices' angles, accurate for close and for antipodal points (Kahan)."""
        angle = 2 * torch.atan2(self._length(x - y), self._length(x + y))
        return torch.linalg.vector_norm(angle, dim=tuple(range(-self.ndim, 0)))

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Parallel transport along the shortest great circles."""
        return v - (x + y) * (self._dot(y, v) / (1 + self._dot(x, y)))

    def project(self, x: Tensor) -> Tensor:
        """Slices divided by their norms; NaN for a zero slice, which has no nearest point."""
        return x / self._length(x)

    def residual(self, x: Tensor) -> Tensor:
        """Largest `| |slice| - 1 |`."""
        return (self._length(x) - 1).abs().amax(tuple(range(-self.ndim, 0)))

    def random_point(self, shape: tuple[int, ...], *, generator: Any = None, **kwargs: Any) -> Tensor:
        """Uniform on each sphere."""
        return self.project(torch.randn(shape, generator=generator, **kwargs))


def _angle_over_sine(sine: Tensor, cosine: Tensor) -> Tensor:
    """angle / sin(angle), smooth through angle 0 (where a quotient would give NaN derivatives)."""
    small = (sine < 1e-2) & (cosine > 0)
    safe = torch.where(small, torch.ones_like(sine), sine)
    s2 = sine * sine  # arcsin(s)/s; the first term left out is s^8 / 33
    series = 1 + s2 * (1 / 6 + s2 * (3 / 40 + s2 * (5 / 112)))
    return torch.where(small, series, torch.atan2(safe, cosine) / safe)


@dataclasses.dataclass(frozen=True)
class Sphere(UnitSlices):
    """Unit vectors `(*b, n)`.

    >>> x, y = torch.eye(3)[0], torch.eye(3)[1]
    >>> round(Sphere().dist(x, y).item(), 4)
    1.5708
    """

    axis: ClassVar[int] = -1
    ndim: ClassVar[int] = 1

    def shape_error(self, x: Tensor) -> str:
        """Vectors."""
        return "" if x.ndim >= 1 else "a point of Sphere() is a vector, got a single number"

    @classmethod
    def examples(cls) -> list[tuple[Manifold, Any]]:
        """Vectors of length 5 and 2."""
        return [(cls(), (5,)), (cls(), (2,))]
