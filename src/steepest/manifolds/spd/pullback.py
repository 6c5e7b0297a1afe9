"""Metrics that a change of variable makes of another."""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

from torch import Tensor

from steepest.linalg import double
from steepest.manifolds.spd.factors import cholesky
from steepest.manifolds.spd.manifold import SPDMetric


class Image(NamedTuple):
    """X and Y = phi(X), both in float64, and the inner metric's frame at Y."""

    x: Tensor
    y: Tensor
    inner: Any


class Pullback(SPDMetric):
    """The inner metric at Y = phi(X), times scale^2: g(U, V) = scale^2 inner(D phi(X)[U], D phi(X)[V]).

    Coordinates are those of the inner metric at Y: `push(X, h) = D phi^-1(Y)[inner.push(Y, h)] / scale`. The derivative
    of phi and that of its inverse are self-adjoint. Computed in float64 inside.
    """

    @property
    @abc.abstractmethod
    def inner(self) -> SPDMetric:
        """The metric at Y."""

    @property
    @abc.abstractmethod
    def scale(self) -> float:
        """Of distances; its sign is that of all coordinates."""

    @abc.abstractmethod
    def there(self, x: Tensor) -> Tensor:
        """phi."""

    @abc.abstractmethod
    def back(self, y: Tensor) -> Tensor:
        """The inverse of phi."""

    @abc.abstractmethod
    def along(self, x: Tensor, v: Tensor) -> Tensor:
        """D phi(X)[V]."""

    @abc.abstractmethod
    def along_back(self, y: Tensor, w: Tensor) -> Tensor:
        """D phi^-1(Y)[W]."""

    @property
    def identity_carry(self) -> bool:
        """The inner metric's."""
        return self.inner.identity_carry

    @property
    def parallel(self) -> bool:
        """The inner metric's."""
        return self.inner.parallel

    @property
    def closed(self) -> frozenset[str]:
        """What the inner metric has, but the Hessian."""
        return self.inner.closed - {"hessian"}

    def shape_error(self, x: Tensor) -> str:
        """The inner metric's."""
        return self.inner.shape_error(x)

    def frame(self, x: Tensor) -> Image:
        """X, Y and the inner metric's frame."""
        x = double(x)
        y = self.there(x)
        return Image(x, y, self.inner.frame(y))

    def cholesky(self, f: Image) -> Tensor:
        """By X."""
        return cholesky(f.x)

    def push(self, f: Image, h: Tensor) -> Tensor:
        """D phi^-1(Y)[inner.push(h)] / scale."""
        return (self.along_back(f.y, self.inner.push(f.inner, h.to(f.x.dtype))) / self.scale).to(h.dtype)

    def pull(self, f: Image, g: Tensor) -> Tensor:
        """inner.pull(D phi^-1(Y)[G]) / scale."""
        return (self.inner.pull(f.inner, self.along_back(f.y, g.to(f.x.dtype))) / self.scale).to(g.dtype)

    def coords(self, f: Image, v: Tensor) -> Tensor:
        """scale inner.coords(D phi(X)[V])."""
        return (self.scale * self.inner.coords(f.inner, self.along(f.x, v.to(f.x.dtype)))).to(v.dtype)

    def conform(self, f: Image, h: Tensor) -> Tensor:
        """The inner metric's."""
        return self.inner.conform(f.inner, h.to(f.x.dtype)).to(h.dtype)

    def carry(self, f: Image, to: Image, h: Tensor) -> Tensor:
        """The inner metric's."""
        return h if self.identity_carry else self.inner.carry(f, to.inner, h.to(to.x.dtype)).to(h.dtype)

    def step(self, f: Image, h: Tensor) -> Tensor:
        """phi^-1 of the inner metric's."""
        return self.back(self.inner.step(f.inner, h.to(f.x.dtype) / self.scale)).to(h.dtype)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """phi^-1 of the inner metric's."""
        wide = double(x)
        return self.back(self.inner.exp(self.there(wide), self.along(wide, v.to(wide.dtype)))).to(x.dtype)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The inner metric's, taken back."""
        here, there = self.there(double(x)), self.there(double(y))
        return self.along_back(here, self.inner.log(here, there)).to(x.dtype)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """The inner metric's, times |scale|."""
        return (abs(self.scale) * self.inner.dist(self.there(double(x)), self.there(double(y)))).to(x.real.dtype)

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """The inner metric's, taken back."""
        wide = double(x)
        here, there = self.there(wide), self.there(double(y))
        return self.along_back(there, self.inner.transport(here, there, self.along(wide, v.to(wide.dtype)))).to(v.dtype)

    def mean(self, points: Tensor, weights: Tensor | None = None) -> Tensor:
        """phi^-1 of the inner metric's."""
        return self.back(self.inner.mean(self.there(double(points)), weights)).to(points.dtype)
