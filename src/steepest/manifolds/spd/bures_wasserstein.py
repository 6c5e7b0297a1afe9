"""The Bures-Wasserstein metric, and its generalisation by a positive definite matrix."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from steepest.linalg import double, lyapunov, polar
from steepest.manifolds.spd.factors import cholesky, square
from steepest.manifolds.spd.manifold import SPDMetric
from steepest.spec import tensor_field


class Factors(NamedTuple):
    """X = L L^H, M = C C^H (None for the identity), and K = C^-1 L."""

    L: Tensor
    C: Tensor | None
    K: Tensor


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class BuresWasserstein(SPDMetric):
    """tr(S U) / 2 with S the Hermitian solution of X S M + M S X = V: for M = I the 2-Wasserstein metric of centred
    Gaussians, dist^2 = tr X + tr Y - 2 tr (X^(1/2) Y X^(1/2))^(1/2).

    Coordinates are matrices h `(*b, n, n)`, with X = L L^H, M = C C^H and K = C^-1 L:

        push(X, h) = C h L^H + (C h L^H)^H,    pull(X, G) = 2 C^H sym(G) L;

    those that conform are S K with Hermitian S, which leaves L's freedom L -> L Q alone. Everything is the metric with
    M = I at C^-1 X C^-H, to which this congruence is an isometry. With M = X the metric at X, and only there, is a
    quarter of the affine-invariant one.

    `exp(x, v)` is (L + C h) (L + C h)^H: positive semidefinite however large v. It is the geodesic as long as I + t S
    stays definite for t in [0, 1], S = h K^-1; the metric is not complete, and there the geodesic ends. Its
    curvature is not negative. `transport` is through the coordinates, not parallel.

    Args:
        m: M, `(n, n)`, or `(*b, n, n)` for one in each batch element; symmetric or Hermitian positive definite. None:
            the identity. Gradients flow to it through every method, so that it can be learned.

    Malago, Montrucchio and Pistone 2018 (1801.09269), Bhatia, Jain and Lim 2019 (1712.01504); with M: Han, Mishra,
    Jawanpuria and Gao 2021 (2110.10464).

    >>> from steepest.manifolds import BuresWasserstein
    >>> x, y = torch.eye(2), 4 * torch.eye(2)
    >>> round(SPD(BuresWasserstein()).dist(x, y).item(), 4)
    1.4142
    >>> round(SPD(BuresWasserstein([[4.0, 0.0], [0.0, 4.0]])).dist(x, y).item(), 4)
    0.7071
    """

    m: Tensor | None = None

    name: ClassVar[str] = "bures-wasserstein"

    def __post_init__(self) -> None:
        m = tensor_field(self, "m")
        if m is not None and (m.ndim < 2 or m.shape[-2] != m.shape[-1]):
            raise ValueError(f"m: expected a positive definite matrix (..., n, n), got shape {tuple(m.shape)}")

    def shape_error(self, x: Tensor) -> str:
        """A size other than that of M, or an M that is not positive definite."""
        if self.m is None:
            return ""
        n = self.m.shape[-1]
        if x.shape[-1] != n:
            return f"shape {tuple(x.shape)} is not (..., {n}, {n}): the matrix m of the metric is {n} x {n}"
        if self.m.is_complex() and not x.is_complex():
            return f"entries are real ({x.dtype}), but the matrix m of the metric is complex"
        if cholesky(self.m.detach()).isnan().any() or not torch.allclose(self.m, self.m.mH):
            return (
                "the matrix m of the metric is not positive definite; use m @ m.mH + a small multiple of the identity"
            )
        return ""

    def frame(self, x: Tensor) -> Factors:
        """Cholesky factors of X and M."""
        L = cholesky(x)
        if self.m is None:
            return Factors(L, None, L)
        C = cholesky(self.m.to(x))
        return Factors(L, C, torch.linalg.solve_triangular(C, L, upper=False))

    def cholesky(self, f: Factors) -> Tensor:
        """L."""
        return f.L

    def push(self, f: Factors, h: Tensor) -> Tensor:
        """C h L^H and its adjoint."""
        half = _times(f.C, h) @ f.L.mH
        return half + half.mH

    def pull(self, f: Factors, g: Tensor) -> Tensor:
        """2 C^H sym(G) L."""
        p = (g + g.mH) @ f.L
        return p if f.C is None else f.C.mH @ p

    def coords(self, f: Factors, v: Tensor) -> Tensor:
        """S K, where K K^H S + S K K^H = C^-1 V C^-H."""
        if f.C is not None:
            half = torch.linalg.solve_triangular(f.C, v, upper=False)
            v = torch.linalg.solve_triangular(f.C, half.mH, upper=False).mH
        return _horizontal(f.K, v)

    def conform(self, f: Factors, h: Tensor) -> Tensor:
        """The nearest S K."""
        half = h @ f.K.mH
        return _horizontal(f.K, half + half.mH)

    def decay(self, f: Factors, h: Tensor, rate: float) -> Tensor:
        """X has the coordinates K / 2."""
        return h + 0.5 * rate * f.K

    def step(self, f: Factors, h: Tensor) -> Tensor:
        """(L + C h) (L + C h)^H; for h that do not conform still X + push(X, h) to first order."""
        return square(f.L + _times(f.C, h))

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """(L + C h) (L + C h)^H, h the coordinates of v; the geodesic as long as I + t h K^-1 is definite."""
        f = self.frame(x)
        return self.step(f, self.coords(f, v))

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """push(X, K_Y Q - K_X), with the unitary Q that brings K_Y next to K_X; unique."""
        f = self.frame(double(x))
        return self.push(f, _gap(f.K, self.frame(double(y)).K)).to(x.dtype)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """|K_Y Q - K_X|: without the cancellation of the traces, so that near points have accurate distances."""
        gap = _gap(self.frame(double(x)).K, self.frame(double(y)).K)
        return torch.linalg.vector_norm(gap, dim=(-2, -1)).to(x.real.dtype)

    def hessian(self, x: Tensor, g: Tensor, gv: Tensor, v: Tensor) -> Tensor:
        """push(X, pull(X, gv) + 2 C^H sym(g) C h) with the coordinates h of v: the derivative along h of the gradient
        2 C^H sym(g) L of the function of K; push takes out what is in the directions K -> K Q."""
        f = self.frame(x)
        h = (g + g.mH) @ _times(f.C, self.coords(f, v))
        return self.push(f, self.pull(f, gv) + (h if f.C is None else f.C.mH @ h))

    @classmethod
    def examples(cls) -> list[tuple[SPDMetric, tuple[int, int]]]:
        """Without and with M."""
        m = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 0.7]], dtype=torch.float64)
        return [(cls(), (4, 4)), (cls(m), (3, 3))]


def _times(c: Tensor | None, h: Tensor) -> Tensor:
    return h if c is None else c @ h


def _horizontal(k: Tensor, v: Tensor) -> Tensor:
    """S K with K K^H S + S K K^H = V, in float64: sums of two eigenvalues spread as far as the condition of K K^H."""
    wide = double(k)
    return (lyapunov(square(wide), v.to(wide.dtype)) @ wide).to(v.dtype)


def _gap(k: Tensor, other: Tensor) -> Tensor:
    """The shortest difference of two factors over the unitary freedom of the second."""
    return other @ polar(other.mH @ k) - k
