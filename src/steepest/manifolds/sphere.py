"""Unit vectors."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest.linalg.entire import horner, versine_sinc
from steepest.manifolds.base import Manifold

ARCSINE = [math.comb(2 * k, k) / (4**k * (2 * k + 1)) for k in range(14)]
"""arcsin(sqrt s) / sqrt s as a power series; for s < 1/16 what follows is below 1e-18."""


class UnitSlices(Manifold):
    """Tensors whose slices along `axis` have Euclidean norm one, under the Frobenius inner product.

    The frame at x removes from each slice its part along x: `push(x, h) = h - x Re<x, h>`, slice by slice. Every slice
    moves on a sphere of its own, complex ones on that of the real dimension 2n - 1.
    """

    axis: ClassVar[int]
    scalars: ClassVar[tuple[str, ...]] = ("real", "complex")
    parallel: ClassVar[bool] = True

    def _along(self, x: Tensor, y: Tensor) -> Tensor:
        return (x.conj() * y).real.sum(self.axis, keepdim=True)

    def _length(self, x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x, dim=self.axis, keepdim=True)

    def _push(self, x: Tensor, h: Tensor) -> Tensor:
        return h - x * self._along(x, h)

    def _pull(self, x: Tensor, g: Tensor) -> Tensor:
        return g - x * self._along(x, g)

    def _coords(self, x: Tensor, v: Tensor) -> Tensor:
        return v

    def _conform(self, x: Tensor, h: Tensor) -> Tensor:
        return self._push(x, h)

    def _move(self, x: Tensor, h: Tensor) -> Tensor:
        return self.project(x + self._push(x, h))

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """Great circle: `cos|v| x + sin|v| v/|v|`."""
        versine, sinc = versine_sinc(self._along(v, v))
        return x + (v * sinc - x * versine)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The v of least norm with `exp(x, v) == y`; NaN, or not reliable, for antipodal points, where it is not
        unique."""
        # angle / sin(angle) is the arc over the chord, angle / |x - y|, over cos(angle / 2) = |x + y| / 2
        return self._push(x, y - x) * (2 * self._arc_over_chord(x, y) / self._length(x + y))

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """Root of the summed squares of the slices' angles, accurate for close and for antipodal points."""
        return torch.linalg.vector_norm((y - x) * self._arc_over_chord(x, y), dim=tuple(range(-self.ndim, 0)))

    def _arc_over_chord(self, x: Tensor, y: Tensor) -> Tensor:
        """arcsin(t) / t of half the chord t = |x - y| / 2: by its series in t^2 for t < 1/4, smooth at x = y, and else
        from |x + y| too, which keeps its digits at antipodal points (Kahan)."""
        s = self._along(y - x, y - x) / 4
        near = s < 1 / 16
        t = torch.where(near, 1, s).sqrt()
        return torch.where(near, horner(s, ARCSINE), torch.atan2(t, self._length(x + y) / 2) / t)

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Parallel transport along the shortest great circles."""
        return v - (x + y) * (self._along(y, v) / (1 + self._along(x, y)))

    def hessian(self, x: Tensor, g: Tensor, gv: Tensor, v: Tensor) -> Tensor:
        """`gv` without its part along x, less v times the part of g along x."""
        return self._push(x, gv) - v * self._along(x, g)

    def project(self, x: Tensor) -> Tensor:
        """Slices divided by their norms; NaN for a zero slice, which has no nearest point."""
        return x / self._length(x)

    def residual(self, x: Tensor) -> Tensor:
        """Largest `| |slice| - 1 |`."""
        return (self._length(x) - 1).abs().amax(tuple(range(-self.ndim, 0)))

    def random_point(self, shape: tuple[int, ...], *, generator: Any = None, **kwargs: Any) -> Tensor:
        """Uniform on each sphere."""
        return self.project(torch.randn(shape, generator=generator, **kwargs))

    def dim(self, shape: tuple[int, ...], scalars: str = "real") -> int:
        """One less than the entries of each slice."""
        entries = math.prod(shape)
        return entries * (2 if scalars == "complex" else 1) - entries // shape[self.axis]


@dataclasses.dataclass(frozen=True)
class Sphere(UnitSlices):
    """Unit vectors `(*b, n)`, real or complex.

    The coordinates are those of R^n: `push(x, h) = h - x Re<x, h>`. Geodesics are great circles.

    Absil, Mahony and Sepulchre 2008, Optimization Algorithms on Matrix Manifolds, example 5.4.1.

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
