"""Symmetric positive definite matrices."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest.linalg import double, sym, sym_exp, sym_log, sym_sqrt
from steepest.manifolds.base import Manifold

RETRACTIONS = ("exp", "second_order")


@dataclasses.dataclass(frozen=True)
class SPD(Manifold):
    """Symmetric positive definite matrices X `(*b, n, n)` under the affine-invariant metric tr(X^-1 U X^-1 V).

    The frame comes from the Cholesky factor, X = L L^T, which varies smoothly with X: `push(X, S) = L sym(S) L^T`.
    Geodesics reach every positive definite matrix and never leave; both retractions are positive definite by
    construction, as the product of a matrix with its transpose, however large the step.

    Args:
        retraction: "exp", the geodesic, by one eigendecomposition, or "second_order", X + V + V X^-1 V / 2, by
        products.

    Pennec, Fillard and Ayache 2006; Bhatia 2007, chapter 6; Jeuris, Vandebril and Vandereycken 2012 (second order).

    >>> x = torch.eye(2)
    >>> round(SPD().dist(x, torch.e * x).item(), 4)
    1.4142
    """

    retraction: str = "exp"

    identity_carry: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.retraction not in RETRACTIONS:
            raise ValueError(f"retraction: unknown {self.retraction!r}, expected one of {', '.join(RETRACTIONS)}")

    def frame(self, x: Tensor) -> Tensor:
        """Cholesky factor L; NaN where x is not positive definite."""
        return _cholesky(x)

    def _push(self, L: Tensor, h: Tensor) -> Tensor:
        return L @ sym(h) @ L.mT

    def _pull(self, L: Tensor, g: Tensor) -> Tensor:
        return L.mT @ sym(g) @ L

    def _coords(self, L: Tensor, v: Tensor) -> Tensor:
        half = torch.linalg.solve_triangular(L, sym(v), upper=False)
        return sym(torch.linalg.solve_triangular(L, half.mT, upper=False))

    def _conform(self, L: Tensor, h: Tensor) -> Tensor:
        return sym(h)

    def _carry(self, L: Tensor, to: Tensor, h: Tensor) -> Tensor:
        return h  # symmetric here is symmetric there

    def _move(self, L: Tensor, h: Tensor) -> Tensor:
        if self.retraction == "exp":
            return _square(L @ sym_exp(h / 2))
        return (_square(L) + _square(L + L @ sym(h))) / 2  # L (I + S + S^2 / 2) L^T

    def _decay(self, L: Tensor, h: Tensor, rate: float) -> Tensor:
        return h + rate * torch.eye(L.shape[-1], dtype=L.dtype, device=L.device)  # push(X, I) = X

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """End of the geodesic that leaves x with velocity v."""
        L = self.frame(x)
        return _square(L @ sym_exp(self._coords(L, v) / 2))

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The v with `exp(x, v) == y`; unique."""
        L, w = self._whiten(x, y)
        return self._push(L, sym_log(w)).to(x.dtype)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """`|log(L^-1 Y L^-T)|`, shape `(*b,)`."""
        return torch.linalg.vector_norm(sym_log(self._whiten(x, y)[1]), dim=(-2, -1)).to(x.dtype)

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Parallel transport along the geodesic: E V E^T with E = (Y X^-1)^(1/2)."""
        L, w = self._whiten(x, y)
        root = sym_sqrt(w)
        return self._push(L, root @ self._coords(L, v.to(w.dtype)) @ root).to(x.dtype)

    def _whiten(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """L and L^-1 Y L^-T, in float64: its condition may be the product of both, and in float32 it would lose the
        definiteness that both have."""
        L = self.frame(double(x))
        return L, self._coords(L, double(y))

    def project(self, x: Tensor) -> Tensor:
        """Symmetric part with eigenvalues raised to at least `sqrt(eps)` times the largest: the set is open, so there
        is
        no nearest point, and this one can be computed with."""
        w, v = torch.linalg.eigh(sym(x))
        floor = torch.finfo(x.dtype).eps ** 0.5 * w[..., -1:].clamp_min(0)
        return _square(v * torch.maximum(w, floor).sqrt().unsqueeze(-2))

    def residual(self, x: Tensor) -> Tensor:
        """Asymmetry relative to the largest entry; infinite where the symmetric part is not positive definite."""
        asymmetry = (x - x.mT).abs().amax((-2, -1)) / x.abs().amax((-2, -1))
        _, info = torch.linalg.cholesky_ex(sym(x))
        return torch.where(info == 0, asymmetry, torch.inf)

    def random_point(self, shape: tuple[int, ...], *, generator: Any = None, **kwargs: Any) -> Tensor:
        """A Gaussian matrix times its transpose, scaled to trace about n, plus a tenth of the identity."""
        a = torch.randn(shape, generator=generator, **kwargs)
        return _square(a) / shape[-1] + 0.1 * torch.eye(shape[-1], dtype=a.dtype, device=a.device)

    def shape_error(self, x: Tensor) -> str:
        """Square matrices."""
        if x.ndim >= 2 and x.shape[-2] == x.shape[-1]:
            return ""
        return f"shape {tuple(x.shape)} is not (..., n, n): a symmetric matrix is square"

    @classmethod
    def examples(cls) -> list[tuple[Manifold, Any]]:
        """Both retractions; 1 x 1."""
        return [(cls(), (4, 4)), (cls("second_order"), (3, 3)), (cls(), (1, 1))]


def _cholesky(x: Tensor) -> Tensor:
    L, info = torch.linalg.cholesky_ex(sym(x))
    return torch.where((info == 0)[..., None, None], L, torch.nan)


def _square(m: Tensor) -> Tensor:
    """M M^T, symmetric to the last bit."""
    return sym(m @ m.mT)
