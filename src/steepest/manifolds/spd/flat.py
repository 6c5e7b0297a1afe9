"""Metrics without curvature: a chart onto the Hermitian matrices is an isometry."""

from __future__ import annotations

import abc
from typing import ClassVar

import torch
from torch import Tensor

from steepest.linalg import double
from steepest.manifolds.karcher import normalized_weights
from steepest.manifolds.spd.manifold import SPDMetric
from steepest.manifolds.tensors import bcast


class FlatMetric(SPDMetric):
    """The Frobenius metric of the Hermitian matrices C = chart(X), pulled back: geodesics are straight lines in C.

    The frame of X is C itself, and `push(C, h)` the derivative of the chart's inverse along h.
    """

    identity_carry: ClassVar[bool] = True
    parallel: ClassVar[bool] = True

    @abc.abstractmethod
    def frame(self, x: Tensor) -> Tensor:
        """The chart, C."""

    @abc.abstractmethod
    def point(self, c: Tensor) -> Tensor:
        """Inverse of the chart, positive definite by construction."""

    def step(self, c: Tensor, h: Tensor) -> Tensor:
        """The point at C + h."""
        return self.point(c + 0.5 * (h + h.mH)).to(h.dtype)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """The point at C + h, h the coordinates of v."""
        return self.step(self.frame(x), self.chart_derivative(x, v).to(v.dtype))

    def chart_derivative(self, x: Tensor, v: Tensor) -> Tensor:
        """The coordinates of v, in float64."""
        return self.coords(self.frame(double(x)), double(v))

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The difference of the charts, pushed; unique."""
        c = self.frame(double(x))
        return self.push(c, self.frame(double(y)) - c).to(x.dtype)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """Length of the difference of the charts."""
        gap = self.frame(double(y)) - self.frame(double(x))
        return torch.linalg.vector_norm(gap, dim=(-2, -1)).to(x.real.dtype)

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Parallel transport, along any path: the coordinates stay."""
        return self.push(self.frame(double(y)), self.chart_derivative(x, v)).to(v.dtype)

    def hessian(self, x: Tensor, g: Tensor, gv: Tensor, v: Tensor) -> Tensor:
        """The derivative of the gradient in the chart, along v."""
        c = self.frame(x)
        h = self.coords(c, v)
        bent = torch.func.jvp(lambda c: self.pull(c, g), (c,), (h.to(c.dtype),))[1]
        return self.push(c, self.pull(c, gv) + bent)

    def mean(self, points: Tensor, weights: Tensor | None = None) -> Tensor:
        """The point at the weighted mean of the charts; unique."""
        w = bcast(normalized_weights(weights, points, points.shape[1:-2]), 2)
        return self.point((w * self.frame(double(points))).sum(0)).to(points.dtype)
