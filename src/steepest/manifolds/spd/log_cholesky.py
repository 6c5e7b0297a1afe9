"""The log-Cholesky metric."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from steepest.linalg import sym
from steepest.manifolds.spd.factors import cholesky, square, whiten
from steepest.manifolds.spd.flat import FlatMetric

ROOT2 = 2**0.5


@dataclasses.dataclass(frozen=True)
class LogCholesky(FlatMetric):
    """The Cholesky factors X = L L^H under the Frobenius metric below the diagonal and that of logarithms on it, flat.

    Coordinates are Hermitian matrices h `(*b, n, n)`, isometric to the lower triangular l with l_ij = sqrt(2) h_ij
    below the diagonal and l_ii = h_ii on it:

        push(X, h) = dL L^H + L dL^H,    dL_ij = l_ij (i > j),    dL_ii = L_ii l_ii.

    The cheapest of the metrics: no eigendecomposition anywhere. Not invariant under a change of basis, not even under a
    permutation. The determinant of a geodesic and of a mean is the geometric one, so nothing swells.

    Lin 2019 (1908.09326); for Hermitian matrices with complex l_ij and real l_ii.

    >>> from steepest.manifolds import LogCholesky
    >>> x = torch.tensor([[4.0, 2.0], [2.0, 2.0]])  # L = [[2, 0], [1, 1]]
    >>> round(SPD(LogCholesky()).dist(torch.eye(2), x).item() ** 2, 4)  # 1 + log(2)^2
    1.4805
    """

    name: ClassVar[str] = "log-cholesky"

    def frame(self, x: Tensor) -> Tensor:
        """L, with the logarithm on the diagonal, as a Hermitian matrix of the same norm."""
        L = cholesky(x)
        return _hermitian(L, _diagonal(L).log())

    def point(self, c: Tensor) -> Tensor:
        """L L^H."""
        return square(self.cholesky(c))

    def cholesky(self, c: Tensor) -> Tensor:
        """L."""
        return _lower(c, _diagonal(c).exp())

    def push(self, c: Tensor, h: Tensor) -> Tensor:
        """dL L^H + L dL^H."""
        L = self.cholesky(c)
        return 2 * sym(_lower(sym(h), _diagonal(h) * _diagonal(L)) @ L.mH)

    def pull(self, c: Tensor, g: Tensor) -> Tensor:
        """The lower triangle of 2 sym(G) L, its diagonal times that of L, as a Hermitian matrix."""
        L = self.cholesky(c)
        p = 2 * sym(g) @ L
        return _hermitian(p, _diagonal(p) * _diagonal(L))

    def coords(self, c: Tensor, v: Tensor) -> Tensor:
        """dL = L phi(L^-1 V L^-H), phi the lower triangle with half of the diagonal."""
        L = self.cholesky(c)
        w = sym(whiten(L, v))
        dL = L @ (torch.tril(w) - 0.5 * torch.diag_embed(_diagonal(w)))
        return _hermitian(dL, 0.5 * _diagonal(w))


def _diagonal(m: Tensor) -> Tensor:
    """The real diagonal, `(*b, n)`."""
    return m.diagonal(dim1=-2, dim2=-1).real


def _lower(h: Tensor, diagonal: Tensor) -> Tensor:
    """Lower triangular: sqrt(2) h below the diagonal."""
    return ROOT2 * torch.tril(h, -1) + torch.diag_embed(diagonal).to(h.dtype)


def _hermitian(l: Tensor, diagonal: Tensor) -> Tensor:  # noqa: E741
    """Hermitian: l / sqrt(2) below the diagonal, the inverse and the adjoint of `_lower`."""
    below = torch.tril(l, -1) / ROOT2
    return below + below.mH + torch.diag_embed(diagonal).to(l.dtype)
