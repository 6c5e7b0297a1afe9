"""The affine-invariant metric."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from steepest.linalg import double, sym, sym_sqrt
from steepest.linalg.products import add_product, congruence, divide, product
from steepest.linalg.symmetric import exp_root, log_congruence, log_norm
from steepest.manifolds.spd.factors import cholesky, square, whiten
from steepest.manifolds.spd.manifold import SPDMetric


@dataclasses.dataclass(frozen=True)
class AffineInvariant(SPDMetric):
    """tr(X^-1 U X^-1 V): the metric that X -> A X A^H leaves alone, for every invertible A; up to a factor 2 the Fisher
    metric of centred Gaussians.

    Coordinates are Hermitian matrices S `(*b, n, n)`. The frame comes from the Cholesky factor, X = L L^H, which varies
    smoothly with X: `push(X, S) = L S L^H`. Geodesics reach every positive definite matrix and never leave.

    Pennec, Fillard and Ayache 2006; Bhatia 2007, chapter 6.

    >>> from steepest.manifolds import AffineInvariant
    >>> x, y = torch.diag(torch.tensor([1.0, 4.0])), torch.diag(torch.tensor([4.0, 1.0]))
    >>> torch.allclose(SPD(AffineInvariant()).mean(torch.stack([x, y])), 2 * torch.eye(2))
    True
    """

    name: ClassVar[str] = "affine-invariant"
    identity_carry: ClassVar[bool] = True
    parallel: ClassVar[bool] = True

    def frame(self, x: Tensor) -> Tensor:
        """The Cholesky factor L."""
        return cholesky(x)

    def cholesky(self, L: Tensor) -> Tensor:
        """The frame itself."""
        return L

    def push(self, L: Tensor, h: Tensor) -> Tensor:
        """L S L^H."""
        return congruence(L, sym(h))

    def pull(self, L: Tensor, g: Tensor) -> Tensor:
        """L^H sym(G) L."""
        return congruence(L.mH, sym(g))

    def coords(self, L: Tensor, v: Tensor) -> Tensor:
        """L^-1 V L^-H."""
        return sym(whiten(L, v))

    def decay(self, L: Tensor, h: Tensor, rate: float) -> Tensor:
        """X has the coordinates I."""
        return h + rate * torch.eye(L.shape[-1], dtype=L.dtype, device=L.device)

    def step(self, L: Tensor, h: Tensor) -> Tensor:
        """L exp(S) L^H, S the symmetric part of h: what treats rows and columns differently makes it other than h."""
        return square(exp_root(L, sym(h)))

    def second_order(self, L: Tensor, h: Tensor) -> Tensor:
        """L (I + S + S^2 / 2) L^H."""
        return 0.5 * square(torch.cat([L, add_product(L, L, sym(h))], -1))

    def grad(self, x: Tensor, g: Tensor) -> Tensor:
        """X sym(G) X."""
        return congruence(x, sym(g))

    def second_order_step(self, x: Tensor, v: Tensor) -> Tensor:
        """X + V + V X^-1 V / 2, the last term as the square of V L^-H."""
        lifted = divide(v, self.frame(x))
        return sym(add_product(x + v, lifted, lifted.mH, 0.5))

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """L exp(L^-1 V L^-H) L^H."""
        L = self.frame(x)
        return self.step(L, whiten(L, v))

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """L log(L^-1 Y L^-H) L^H; unique."""
        L, w = _whitened(x, y)
        return log_congruence(L, w).to(x.dtype)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """|log(L^-1 Y L^-H)|."""
        return log_norm(_whitened(x, y)[1]).to(x.real.dtype)

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Parallel transport along the geodesic: E V E^H with E = (Y X^-1)^(1/2) = L (L^-1 Y L^-H)^(1/2) L^-1."""
        L, w = _whitened(x, y)
        return congruence(product(L, sym_sqrt(w)), whiten(L, v.to(w.dtype))).to(x.dtype)

    def hessian(self, x: Tensor, g: Tensor, gv: Tensor, v: Tensor) -> Tensor:
        """X sym(gv) X + sym(V sym(g) X): the derivative W' of the gradient W = X sym(g) X along V, less sym(V X^-1 W),
        the connection of this metric."""
        return x @ sym(gv) @ x + sym(v @ sym(g) @ x)

    def sectional_curvature(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Curvature of the plane of u and v, tangent at x, shape `(*b,)`: -|[A, B]|^2 / 4 for orthonormal A, B, the
        coordinates of a basis. Between -1/2 and 0; 0 where u and v are parallel to rounding."""
        L = self.frame(x)
        a, b = self.coords(L, u), self.coords(L, v)
        aa, bb, ab = _dot(a, a), _dot(b, b), _dot(a, b)
        area = aa * bb - ab.square()
        bracket = a @ b - b @ a
        flat = area <= 16 * torch.finfo(x.dtype).eps * aa * bb
        return torch.where(flat, 0, -0.25 * _dot(bracket, bracket) / torch.where(flat, 1, area))

    @classmethod
    def examples(cls) -> list[tuple[SPDMetric, tuple[int, int]]]:
        """4 x 4."""
        return [(cls(), (4, 4))]


def _whitened(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """L and L^-1 Y L^-H, in float64: its condition may be the product of both, and in float32 it would lose the
    definiteness that both have."""
    L = cholesky(double(x))
    return L, whiten(L, double(y))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a.conj() * b).real.sum((-2, -1))
