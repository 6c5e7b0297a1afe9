"""Nested subspaces, represented by an orthonormal basis in blocks."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest.linalg import cholesky_qr, polar, skew, sym_inv_sqrt
from steepest.linalg.reorthonormalize import reorthonormalize
from steepest.manifolds.base import Manifold
from steepest.manifolds.geodesic import ConvergenceWarning
from steepest.manifolds.implicit import ravel, unravel, with_derivatives
from steepest.manifolds.karcher import normalized_weights
from steepest.manifolds.stiefel import Stiefel
from steepest.manifolds.tensors import bcast

RETRACTIONS = ("qr", "polar", "exp")
ITERATIONS = 2000
"""Of the averages, after which one counts as failed."""


@dataclasses.dataclass(frozen=True)
class Flag(Manifold):
    """Flags V_1 < ... < V_k of nested subspaces: matrices X = [X_1, ..., X_k] `(*b, n, p)`, X^H X = I, whose first j
    blocks span V_j.

    Only the spans of the blocks count: f(X Q) = f(X) for every block-diagonal orthogonal (unitary) Q. The metric is the
    canonical one of the quotient O(n) / (O(p_1) x ... x O(p_k) x O(n - p)). The coordinates are those of the canonical
    Stiefel manifold, two blocks with the diagonal blocks of the first at zero: with A `(p, p)` and Z `(n, p)`,
    `push(X, (A, Z)) = sqrt 2 X offdiagonal(skew(A)) + (I - X X^H) Z`. One block gives the Grassmann manifold, blocks of
    one column the canonical Stiefel manifold up to signs.

    Args:
        dims: (p_1, ..., p_k), the number of columns of each block; V_j has dimension p_1 + ... + p_j.
        retraction: "qr", of X + V by one Cholesky factorisation, the flag of its nested spans; "polar", the nearest
            orthonormal matrix; "exp", the geodesic.

    Ye, Wong and Lim 2022 (1907.00949); the averages are those of Mankovich and Birdal 2023 (2303.13501).

    >>> line_in_plane = Flag((1, 1))
    >>> x, y = torch.eye(3)[:, :2], torch.eye(3)[:, [1, 0]]  # the same plane, another line in it
    >>> round(line_in_plane.chordal_dist(x, y).item(), 4)
    1.4142
    """

    dims: tuple[int, ...]
    retraction: str = "qr"

    scalars: ClassVar[tuple[str, ...]] = ("real", "complex")

    def __post_init__(self) -> None:
        dims = self.dims
        if not isinstance(dims, list | tuple) or not dims or not all(type(d) is int and d > 0 for d in dims):
            raise ValueError(
                f"dims: got {dims!r}, expected the number of columns of each block as positive integers, (1, 2) say "
                "for a line inside a subspace of dimension 3"
            )
        object.__setattr__(self, "dims", tuple(dims))
        if self.retraction not in RETRACTIONS:
            raise ValueError(f"retraction: unknown {self.retraction!r}, expected one of {', '.join(RETRACTIONS)}")

    @property
    def blocks(self) -> tuple[str, ...]:
        """The skew and the horizontal block."""
        return ("skew", "horizontal")

    def _same_block(self, x: Tensor) -> Tensor:
        """Whether two columns belong to one block, `(p, p)`."""
        label = torch.tensor([j for j, d in enumerate(self.dims) for _ in range(d)], device=x.device)
        return label.unsqueeze(-1) == label

    def _levels(self, x: Tensor) -> Tensor:
        """For each column the share of V_1, ..., V_k that it lies in, `(p,)`."""
        k = len(self.dims)
        shares = [1 - j / k for j, d in enumerate(self.dims) for _ in range(d)]
        return torch.tensor(shares, dtype=x.real.dtype, device=x.device)

    def _turn(self, x: Tensor, a: Tensor) -> Tensor:
        """The skew part of a `(*b, p, p)` without its diagonal blocks."""
        return skew(a).masked_fill(self._same_block(x), 0)

    def _push(self, x: Tensor, h: tuple[Tensor, Tensor]) -> Tensor:
        a, z = h
        return z + x @ (math.sqrt(2) * self._turn(x, a) - x.mH @ z)

    def _pull(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        xg = x.mH @ g
        return math.sqrt(2) * self._turn(x, xg), g - x @ xg

    def _coords(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        xv = x.mH @ v
        return self._turn(x, xv) / math.sqrt(2), v - x @ xv

    def _conform(self, x: Tensor, h: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        a, z = h
        return self._turn(x, a), z - x @ (x.mH @ z)

    def _move(self, x: Tensor, h: tuple[Tensor, Tensor]) -> Tensor:
        v = self._push(x, h)
        if self.retraction == "exp":
            return self.exp(x, v)
        y = x + v
        return cholesky_qr(y) if self.retraction == "qr" else y @ sym_inv_sqrt(y.mH @ y)  # all mend x's own rounding

    def represent(self, x: Tensor) -> Tensor:
        """The mean of the orthogonal projectors onto V_1, ..., V_k, `(*b, n, n)`."""
        return (x * self._levels(x)) @ x.mH

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """End of the geodesic that leaves x with velocity v: that of the canonical Stiefel manifold, along which a
        tangent vector of the flag manifold stays one."""
        return reorthonormalize(Stiefel("canonical").exp(x, v))

    def project(self, x: Tensor) -> Tensor:
        """Polar factor: the nearest orthonormal matrix. Where x has not full rank no nearest point is unique, and none
        is returned: the residual of the result tells."""
        return polar(x)

    def residual(self, x: Tensor) -> Tensor:
        """Largest entry of `|X^H X - I|`."""
        return Stiefel().residual(x)

    def random_point(self, shape: tuple[int, ...], *, generator: Any = None, **kwargs: Any) -> Tensor:
        """Uniform under rotations."""
        return polar(torch.randn(shape, generator=generator, **kwargs))

    def shape_error(self, x: Tensor) -> str:
        """Tall or square matrices with a column for each of `dims`."""
        if fault := Stiefel().shape_error(x):
            return fault
        p = sum(self.dims)
        return "" if x.shape[-1] == p else f"shape {tuple(x.shape)} is not (..., n, {p}): dims = {self.dims} sum to {p}"

    def dim(self, shape: tuple[int, ...], scalars: str = "real") -> int:
        """The dimension of the Stiefel manifold less those of the rotations within the blocks."""
        within = sum(d * d if scalars == "complex" else d * (d - 1) // 2 for d in self.dims)
        return Stiefel().dim(shape, scalars) - within

    # Averages in the chordal distance. --------------------------------------------------------------------------------

    def chordal_dist(self, x: Tensor, y: Tensor) -> Tensor:
        """Root of sum_j p_j - |X_j^H Y_j|^2, shape `(*b,)`: the norm of the sines of the angles between blocks.

        It is sum_j |X_j X_j^H - Y_j Y_j^H|^2 / 2, as in Mankovich and Birdal 2023, written without cancellation.
        """
        return torch.linalg.matrix_norm(x - self._near(x, y))

    def chordal_mean(self, points: Tensor, weights: Tensor | None = None) -> Tensor:
        """The Y that minimises the weighted sum of squares of `chordal_dist(X_i, Y)` over points `(m, *b, n, p)`.

        It maximises sum_j tr(Y_j^H P_j Y_j) with P_j = sum_i w_i X_ij X_ij^H on the Stiefel manifold (Mankovich and
        Birdal 2023). The maximum is convex in Y, so that Y <- polar([P_1 Y_1, ..., P_k Y_k]) ascends
        (Journee, Nesterov, Richtarik and Sepulchre 2010, 0811.4724); the source uses a trust-region solver. It starts
        at the flag of the leading eigenvectors of the mean of `represent`, the solution itself where k = 1; for k > 1
        there may be other local maxima. Twice differentiable, as a flag: the columns of a block are determined up to a
        rotation.

        Args:
            points: orthonormal bases along a new first dimension.
            weights: positive, `(m,)` or `(m, *b)`; scaled to sum one. None: equal.
        """
        w = self._checked(points, weights)
        with torch.no_grad():
            y = self._ascend(points, lambda y: w)

        if torch.is_grad_enabled() and (points.requires_grad or w.requires_grad):
            y = self._attached(points, w, y)
        return y

    def chordal_median(self, points: Tensor, weights: Tensor | None = None) -> Tensor:
        """The Y that minimises the weighted sum of `chordal_dist(X_i, Y)` over points `(m, *b, n, p)`: robust, for an
        outlier's pull does not grow with its distance.

        Weiszfeld's iteration as in Mankovich and Birdal 2023: the mean with the weights w_i / d_i, of
        which one step at a time is taken here; each lowers the sum. d_i is bounded below by the root of eps, so that Y
        may be one of the points. Not differentiable. Arguments as in `chordal_mean`.
        """
        w = self._checked(points, weights)
        floor = torch.finfo(w.dtype).eps ** 0.5

        def reweighted(y: Tensor) -> Tensor:
            return w / self.chordal_dist(points, y.expand_as(points)).clamp_min(floor)

        with torch.no_grad():
            return self._ascend(points, reweighted)

    def _near(self, x: Tensor, y: Tensor) -> Tensor:
        """Each block of x projected onto the span of the same block of y."""
        return y @ (y.mH @ x).masked_fill(~self._same_block(x), 0)

    def _power(self, points: Tensor, w: Tensor, y: Tensor) -> Tensor:
        """[P_1 Y_1, ..., P_k Y_k] with P_j = sum_i w_i X_ij X_ij^H."""
        return (bcast(w, 2) * self._near(y.expand_as(points), points)).sum(0)

    def _checked(self, points: Tensor, weights: Tensor | None) -> Tensor:
        if points.ndim < 3 or self.shape_error(points):
            raise ValueError(
                f"points: expected orthonormal bases (m, ..., n, {sum(self.dims)}) along a first dimension, got shape "
                f"{tuple(points.shape)}"
            )
        return normalized_weights(weights, points, points.shape[1:-2])

    def _ascend(self, points: Tensor, weigh: Callable[[Tensor], Tensor]) -> Tensor:
        """Y <- polar([P_1 Y_1, ..., P_k Y_k]) until it rests; with the last Y and a warning where it does not."""
        tolerance = torch.finfo(points.dtype).eps ** 0.75
        y = self._start(points, weigh(points[0] * 0))
        for _ in range(ITERATIONS):
            new = polar(self._power(points, weigh(y), y))
            moved = self.chordal_dist(new, y)
            y = new
            if (moved <= tolerance).all():
                return y
        warnings.warn(
            f"chordal average: {int((moved > tolerance).sum())} of {moved.numel()} have not converged in {ITERATIONS} "
            f"iterations; the last one still moved by up to {moved.max().item():.1g}.",
            ConvergenceWarning,
            stacklevel=4,
        )
        return y

    def _attached(self, points: Tensor, w: Tensor, y: Tensor) -> Tensor:
        """The mean y with its derivatives: those of the coordinates z at y in which the slope vanishes."""
        shape = self.pull(y, y)

        def end(z: Tensor) -> Tensor:
            return self.retract(y, self.push(y, unravel(z, shape, self.block_ndims)))

        def slope(z: Tensor) -> Tensor:
            return ravel(self.pull(end(z), self._power(points, w, end(z))), self.block_ndims)

        zero = ravel(shape, self.block_ndims) * 0
        rounding = slope(zero).detach()  # all that is left, and not in the range of the equation's derivative
        return end(with_derivatives(lambda z: slope(z) - rounding, zero))

    def _start(self, points: Tensor, w: Tensor) -> Tensor:
        """Leading eigenvectors of the weighted mean of `represent`, from the singular vectors of the bases in a row."""
        scaled = points * (bcast(w, 2) * self._levels(points)).sqrt()
        row = scaled.movedim(0, -2).flatten(-2)
        return torch.linalg.svd(row, full_matrices=False).U[..., : points.shape[-1]]

    @classmethod
    def examples(cls) -> list[tuple[Manifold, Any]]:
        """One block, several, lines, the whole space; every retraction."""
        return [
            (cls((1, 2)), (5, 3)),
            (cls((2,), "polar"), (4, 2)),
            (cls((1, 1), "exp"), (4, 2)),
            (cls((1, 2)), (3, 3)),
        ]
