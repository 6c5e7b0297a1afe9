"""Matrices whose columns have prescribed products in a bilinear form."""

from __future__ import annotations

import abc
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from steepest.linalg import double, low_rank_expm1, polar
from steepest.linalg.lyapunov import lyapunov_by_eigenvectors
from steepest.manifolds.base import Manifold

RETRACTIONS = ("cayley", "exponential")


class NormalFrame(NamedTuple):
    """A point x and a basis b `(*b, n, p)` of its normal space {b S: S^H = s S}, with the eigenvectors v of the Gram
    matrix b^H b and 1 / (w_i + w_j) for its eigenvalues w; these three in float64."""

    x: Tensor
    b: Tensor
    gram: Tensor
    inverse: Tensor
    v: Tensor


def normal_frame(x: Tensor, b: Tensor) -> NormalFrame:
    """The p x p algebra of the orthogonal projection, factored once. Components along directions of b that are zero to
    rounding are left out."""
    wide = double(b)
    gram = wide.mH @ wide
    w, v = torch.linalg.eigh(gram.detach())
    sums = w.unsqueeze(-1) + w.unsqueeze(-2)
    zero = 2 * w.shape[-1] * torch.finfo(w.dtype).eps * w[..., -1:].unsqueeze(-1)
    return NormalFrame(x, b, gram, torch.where(sums > zero, 1 / sums, 0), v)


def multiplier(f: NormalFrame, h: Tensor, sign: int) -> Tensor:
    """S with S^H = sign S, for which h - b S is orthogonal to the normal space: G S + S G = b^H h + sign (b^H h)^H."""
    c = f.b.mH @ h
    c = double(c + sign * c.mH)
    gram, inverse, v = (t.expand(*c.shape[:-2], *t.shape[-2:]) for t in (f.gram, f.inverse, f.v))
    return lyapunov_by_eigenvectors(gram, c, inverse, v).to(h.dtype)


class Quadratic(Manifold):
    """Matrices X `(*b, n, p)` with X^H A X = J under the Euclidean metric tr(U^H V).

    A is n x n and nonsingular, A^H = s A with s = 1 or -1; J is p x p with J^H = J^-1 = s J. With B = A X the normal
    space is {B S: S^H = s S}, and the frame is the orthogonal projection along it, `push(X, h) = h - B S` with
    G S + S G = B^H h + s h^H B, G = B^H B: a Lyapunov equation of size p.

    Write X^+ = J^-1 X^H A, so that X^+ X = I. A tangent vector Z is W X with W = U X^+ - X U^+, U = Z - X X^+ Z / 2, in
    the Lie algebra of the group that leaves A as it is. Both retractions move X by an element of that group, so that
    X^H A X stays what it is, however long the step:

    - "cayley", (I - W/2)^-1 (I + W/2) X = X + (Z - X H^+ H / 2) N^-1 with H = Z - X X^+ Z and
      N = I - X^+ Z / 2 + H^+ H / 4: a p x p system. The group is not compact, and W can have the eigenvalue 2: there is
      no such point then, and near such a step a very far one.
    - "exponential", expm(W) X, by a matrix exponential of size 3 p: defined for every step.

    One Newton step after each, X <- X (3 I - X^+ X) / 2, keeps rounding from adding up over many steps.

    Gao, Son, Absil and Stykel 2021 (2006.15226), sections 4 and 5, have W and its Cayley transform for the symplectic
    case; Bendokat and Zimmermann 2021 (2108.12447) the p x p form. Neither uses of A more than the above.
    """

    retraction: str
    sign: ClassVar[int]
    """s."""
    scalars: ClassVar[tuple[str, ...]] = ("real", "complex")

    @abc.abstractmethod
    def _form(self, x: Tensor) -> Tensor:
        """A x."""

    @abc.abstractmethod
    def _j(self, m: Tensor) -> Tensor:
        """J m."""

    def _check_retraction(self) -> None:
        if self.retraction not in RETRACTIONS:
            raise ValueError(f"retraction: unknown {self.retraction!r}, expected one of {', '.join(RETRACTIONS)}")

    def _adjoint(self, b: Tensor, z: Tensor) -> Tensor:
        """X^+ Z, given b = A X."""
        return self._j(b.mH @ z)  # J^-1 = s J and X^H A = s B^H

    def frame(self, x: Tensor) -> NormalFrame:
        """The normal space at x."""
        return normal_frame(x, self._form(x))

    def _push(self, f: NormalFrame, h: Tensor) -> Tensor:
        return h - f.b @ multiplier(f, h, self.sign)

    def _pull(self, f: NormalFrame, g: Tensor) -> Tensor:
        return self._push(f, g)

    def _coords(self, f: NormalFrame, v: Tensor) -> Tensor:
        return v

    def _conform(self, f: NormalFrame, h: Tensor) -> Tensor:
        return self._push(f, h)

    def _move(self, f: NormalFrame, h: Tensor) -> Tensor:
        z = self._push(f, h)
        y = self._cayley(f, z) if self.retraction == "cayley" else self._exponential(f, z)
        return self._mended(y)

    def _cayley(self, f: NormalFrame, z: Tensor) -> Tensor:
        d = self._adjoint(f.b, z)
        k = z - f.x @ d
        kk = self._adjoint(self._form(k), k)
        return f.x + _divided(z - f.x @ kk / 2, _eye(d) - d / 2 + kk / 4)

    def _exponential(self, f: NormalFrame, z: Tensor) -> Tensor:
        u = z - f.x @ self._adjoint(f.b, z) / 2
        rows = torch.cat([self._j(f.b.mH), -self._j(self._form(u).mH)], -2)  # X^+ above -U^+
        return f.x + low_rank_expm1(torch.cat([u, f.x], -1), rows.mH, f.x)

    def _mended(self, x: Tensor) -> Tensor:
        """X (3 I - X^+ X) / 2: the residual squared."""
        m = self._adjoint(self._form(x), x)
        return x + x @ (_eye(m) - m) / 2

    def hessian(self, x: Tensor, g: Tensor, gv: Tensor, v: Tensor) -> Tensor:
        """The tangent part of `gv` - A V S, with B S the normal part of g."""
        f = self.frame(x)
        return self._push(f, gv - self._form(v) @ multiplier(f, g, self.sign))

    def project(self, x: Tensor) -> Tensor:
        """A near point, not the nearest: the polar factor with respect to the forms, x (x^+ x)^(-1/2) (Higham, Mehl and
        Tisseur 2010), by Newton's iteration x <- (x + x (x^+ x)^-1) / 2. It does not converge, and the residual of the
        result tells, where x^+ x is singular or has a negative eigenvalue."""
        for _ in range(50):
            m = self._adjoint(self._form(x), x)
            if (m - _eye(m)).abs().max() <= torch.finfo(x.dtype).eps ** 0.5:
                break
            x = (x + _divided(x, m)) / 2
        return self._mended(x)

    def residual(self, x: Tensor) -> Tensor:
        """Largest entry of `|X^H A X - J|`."""
        m = self._adjoint(self._form(x), x)
        return (m - _eye(m)).abs().amax((-2, -1))

    def dim(self, shape: tuple[int, ...], scalars: str = "real") -> int:
        """n p less the conditions of X^H A X = J."""
        n, p = shape[-2:]
        return 2 * n * p - p * p if scalars == "complex" else n * p - p * (p + self.sign) // 2

    def _random(self, shape: tuple[int, ...], generator: Any, **kwargs: Any) -> Tensor:
        """A random point for a unitary A, well conditioned: a step of size about one from an orthonormal point, uniform
        among those under the unitary matrices that commute with A."""
        g, h = (torch.randn(shape, generator=generator, **kwargs) for _ in range(2))
        x = polar(
            g + self._j(self._form(g).mH).mH
        )  # g + A g J^-1 commutes with the forms, and so does its polar factor
        f = self.frame(x)
        n, p = shape[-2:]
        return self._mended(self._cayley(f, self._push(f, h / (n**0.5 + p**0.5))))


def _eye(m: Tensor) -> Tensor:
    return torch.eye(m.shape[-1], dtype=m.dtype, device=m.device)


def _divided(b: Tensor, m: Tensor) -> Tensor:
    """b m^-1; by QR where batched LU factors on the CPU cannot be relied on."""
    if m.shape[-1] < 128:
        return torch.linalg.solve_ex(m, b, left=False).result
    q, r = torch.linalg.qr(m)
    return torch.linalg.solve_triangular(r, b, upper=True, left=False) @ q.mH
