"""Metrics that depend on the eigenvalues alone."""

from __future__ import annotations

import abc
from collections.abc import Callable

from torch import Tensor

from steepest.linalg import double
from steepest.linalg.kernel import sym_kernel
from steepest.manifolds.spd.factors import cholesky
from steepest.manifolds.spd.manifold import SPDMetric


class KernelMetric(SPDMetric):
    """sum |U'_ij|^2 / phi(d_i, d_j) with U' = Q^H U Q in the eigenbasis of X = Q diag(d) Q^H: metrics that
    X -> R X R^H leaves alone for unitary R.

    Coordinates are Hermitian matrices h `(*b, n, n)`: `push(X, h) = Q (sqrt(phi(d_i, d_j)) * Q^H h Q) Q^H`, its own
    adjoint. Neither the basis Q nor repeated eigenvalues matter.

    Geodesics, logarithms and distances come from the general methods of `Manifold`, by integration and shooting. They
    have no derivatives: the frame has one in X, which their equations use up, and to differentiate them raises
    NotImplementedError. The Hessian needs no more. Optimisers use the second-order retraction, which has one
    derivative. Computed in float64 inside.

    To write such a metric, give `phi`: torch operations that act entry by entry, smooth, symmetric and positive for
    positive arguments, with a right derivative at equal ones.

    Hiai and Petz 2009 (0809.4974); Thanwerdas and Pennec 2022 (2109.05768).

    >>> import dataclasses
    >>> from steepest.manifolds import KernelMetric
    >>> @dataclasses.dataclass(frozen=True)
    ... class Harmonic(KernelMetric):
    ...     def phi(self, x, y):
    ...         return 2 * x * y / (x + y)
    >>> SPD(Harmonic()).norm(4 * torch.eye(2), torch.eye(2))
    tensor(0.7071)
    """

    @abc.abstractmethod
    def phi(self, x: Tensor, y: Tensor) -> Tensor:
        """A symmetric positive function of two eigenvalues, entry by entry."""

    def frame(self, x: Tensor) -> Tensor:
        """X in float64."""
        return double(x)

    def cholesky(self, x: Tensor) -> Tensor:
        """L."""
        return cholesky(x)

    def push(self, x: Tensor, h: Tensor) -> Tensor:
        """Q (sqrt(phi) * Q^H h Q) Q^H."""
        return self._apply(x, h, lambda a, b: self.phi(a, b).sqrt())

    def pull(self, x: Tensor, g: Tensor) -> Tensor:
        """The same, of G."""
        return self.push(x, g)

    def coords(self, x: Tensor, v: Tensor) -> Tensor:
        """Q (Q^H V Q / sqrt(phi)) Q^H."""
        return self._apply(x, v, lambda a, b: self.phi(a, b).rsqrt())

    def _apply(self, x: Tensor, m: Tensor, kernel: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return sym_kernel(x, m.to(x.dtype), kernel).to(m.dtype)
