"""Subspaces, represented by orthonormal bases."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from steepest.linalg import cholesky_qr, low_rank_expm1, polar, sym_angle_over_sine
from steepest.manifolds.base import Manifold
from steepest.manifolds.stiefel import Stiefel, _euclidean_exp


@dataclasses.dataclass(frozen=True)
class Grassmann(Manifold):
    """Subspaces of dimension p of R^n: matrices X `(*b, n, p)`, X^T X = I, of which only the span counts.

    Tangent vectors are horizontal, X^T V = 0, and the frame is the orthogonal projection onto them. Functions to be
    minimised must depend on the span alone: f(X Q) = f(X) for orthogonal Q.

    Edelman, Arias and Smith 1998 (physics/9806030), section 2.5; Bendokat, Zimmermann and Absil 2020 (2011.13699).

    >>> x, y = torch.eye(4)[:, :2], torch.eye(4)[:, 2:]
    >>> round(Grassmann().dist(x, y).item(), 4)  # two right angles
    2.2214
    """

    def _push(self, x: Tensor, h: Tensor) -> Tensor:
        return h - x @ (x.mT @ h)

    def _pull(self, x: Tensor, g: Tensor) -> Tensor:
        return g - x @ (x.mT @ g)

    def _coords(self, x: Tensor, v: Tensor) -> Tensor:
        return v

    def _conform(self, x: Tensor, h: Tensor) -> Tensor:
        return self._push(x, h)

    def _move(self, x: Tensor, h: Tensor) -> Tensor:
        return cholesky_qr(x + self._push(x, h))

    def represent(self, x: Tensor) -> Tensor:
        """Orthogonal projector X X^T onto the span, `(*b, n, n)`."""
        return x @ x.mT

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """End of the geodesic that leaves x with velocity v."""
        return _euclidean_exp(x, v)  # the same curve on Stiefel, as X^T V = 0

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The horizontal v of least norm whose `exp(x, v)` spans what y spans. Where a principal angle is a right one
        there are several, and that angle is left out (Bendokat et al. 2020, section 5.2)."""
        aligned = y @ polar(y.mT @ x)  # the basis of y's span that is nearest to x
        cosine = x.mT @ aligned
        return (aligned - x @ cosine) @ sym_angle_over_sine(cosine)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """Root of the summed squares of the principal angles, from their sines and cosines (Bjorck and Golub 1973), so
        that small and large angles are equally accurate."""
        xy = x.mT @ y
        sine, cosine = torch.linalg.svdvals(y - x @ xy), torch.linalg.svdvals(xy)
        return torch.linalg.vector_norm(torch.atan2(sine[..., : xy.shape[-1]], cosine.flip(-1)), dim=-1)

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Parallel transport along the shortest geodesic, of v horizontal at the basis x to the basis y."""
        # expm(K X^T - X K^T), K = log(x, y), moves the frame along the geodesic, to the basis of y's span next to x.
        k = self.log(x, y)
        left, right = torch.cat([k, x], -1), torch.cat([x, -k], -1)
        return (v + low_rank_expm1(left, right, v)) @ polar(y.mT @ x).mT

    def project(self, x: Tensor) -> Tensor:
        """Polar factor: the nearest orthonormal matrix, and a basis of x's own span."""
        return polar(x)

    def residual(self, x: Tensor) -> Tensor:
        """Largest entry of `|X^T X - I|`."""
        return Stiefel().residual(x)

    def random_point(self, shape: tuple[int, ...], *, generator: Any = None, **kwargs: Any) -> Tensor:
        """Uniform under rotations."""
        return polar(torch.randn(shape, generator=generator, **kwargs))

    def shape_error(self, x: Tensor) -> str:
        """Tall or square matrices."""
        return Stiefel().shape_error(x)

    @classmethod
    def examples(cls) -> list[tuple[Manifold, Any]]:
        """Planes, lines, more than half of the space."""
        return [(cls(), (6, 2)), (cls(), (5, 1)), (cls(), (5, 3))]
