"""Subspaces, represented by orthonormal bases."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest.linalg import cholesky_qr, polar, sym_angle_over_sine, sym_inv_sqrt
from steepest.linalg.autograd import plain
from steepest.linalg.eigen import eigvalsh, svd, svdvals
from steepest.linalg.entire import sym_versine_sinc
from steepest.linalg.products import add_product
from steepest.linalg.reorthonormalize import reorthonormalize
from steepest.linalg.scalars import angle_over_sine
from steepest.manifolds.base import Manifold
from steepest.manifolds.stiefel import Stiefel

RETRACTIONS = ("qr", "polar", "exp")


@dataclasses.dataclass(frozen=True)
class Grassmann(Manifold):
    """Subspaces of dimension p of R^n or C^n: matrices X `(*b, n, p)`, X^H X = I, of which only the span counts.

    Tangent vectors are horizontal, X^H V = 0, and the frame is the orthogonal projection onto them:
    `push(X, Z) = (I - X X^H) Z`. Functions to be minimised must depend on the span alone: f(X Q) = f(X) for orthogonal
    (unitary) Q.

    Args:
        retraction: "qr", by one Cholesky factorisation; "polar", the basis nearest to X + V, of the same span; "exp",
            the geodesic. All three are of second order.

    Edelman, Arias and Smith 1998 (physics/9806030), section 2.5; Bendokat, Zimmermann and Absil 2020 (2011.13699).

    >>> x, y = torch.eye(4)[:, :2], torch.eye(4)[:, 2:]
    >>> round(Grassmann().dist(x, y).item(), 4)  # two right angles
    2.2214
    """

    retraction: str = "qr"

    scalars: ClassVar[tuple[str, ...]] = ("real", "complex")
    parallel: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.retraction not in RETRACTIONS:
            raise ValueError(f"retraction: unknown {self.retraction!r}, expected one of {', '.join(RETRACTIONS)}")

    def _push(self, x: Tensor, h: Tensor) -> Tensor:
        return add_product(h, x, x.mH @ h, -1)

    def _pull(self, x: Tensor, g: Tensor) -> Tensor:
        return add_product(g, x, x.mH @ g, -1)

    def _coords(self, x: Tensor, v: Tensor) -> Tensor:
        return v

    def _conform(self, x: Tensor, h: Tensor) -> Tensor:
        return self._push(x, h)

    def _move(self, x: Tensor, h: Tensor) -> Tensor:
        return self.retract(x, self._push(x, h))

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        """By QR or polar factorisation of X + V, or along the geodesic, as `retraction` says; all mend X's own
        rounding."""
        if self.retraction == "exp":
            return self.exp(x, v)
        y = x + v
        return cholesky_qr(y) if self.retraction == "qr" else y @ sym_inv_sqrt(y.mH @ y)

    def represent(self, x: Tensor) -> Tensor:
        """Orthogonal projector X X^H onto the span, `(*b, n, n)`."""
        return x @ x.mH

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """End of the geodesic that leaves x with velocity v: X cos(sqrt S) + V sin(sqrt S) / sqrt S with S = V^H V, the
        formula of Edelman et al. 1998, equation 2.65, without its singular value decomposition, and so with all
        derivatives, at V = 0 too."""
        versine, sinc = sym_versine_sinc(v.mH @ v)
        return reorthonormalize(add_product(add_product(x, v, sinc), x, versine, -1))

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """A horizontal v of least norm whose `exp(x, v)` spans what y spans (Bendokat et al. 2020, section 5.2).

        Unique, and smooth, unless a principal angle is a right one; then one of the shortest is returned."""
        if plain(x, y):
            core = x.mH @ y
            u, cosine, wh = svd(core)
            turn = (wh.mH * angle_over_sine(cosine).unsqueeze(-2)) @ u.mH
            return add_product(y, x, core, -1) @ turn
        aligned = y @ _alignment(y, x)
        cosine = x.mH @ aligned
        return (aligned - x @ cosine) @ sym_angle_over_sine(cosine)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """Root of the summed squares of the principal angles, accurate to a few eps for angles of any size.

        The squares of their sines are eigenvalues of the Gram matrix of (I - X X^H) Y: they err by eps of the largest,
        and so does the sum. Where there are large angles, their cosines, singular values of X^H Y, tell those."""
        if not plain(x, y):
            return torch.linalg.matrix_norm(self.log(x, y))
        core = x.mH @ y
        z = add_product(y, x, core, -1)
        squares = eigvalsh(z.mH @ z).clamp_min(0)
        if squares.is_cpu and squares.numel() and squares.max().item() < 0.5:
            return torch.linalg.vector_norm(squares.sqrt().asin(), dim=-1)
        return torch.linalg.vector_norm(torch.atan2(squares.sqrt(), svdvals(core)), dim=-1)  # ascending, descending

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Parallel transport along the shortest geodesic, of v horizontal at the basis x to the basis y.

        With K = log(x, y) and S = K^H K it is V - (X sin(sqrt S) / sqrt S + K (1 - cos(sqrt S)) / S) K^H V, at the end
        of `exp(x, K)` (Edelman et al. 1998, equation 2.68, in terms of S), turned to the basis y."""
        k = self.log(x, y)
        versine, sinc = sym_versine_sinc(k.mH @ k / 4)  # of half the angles
        along = sinc @ (k.mH @ v)
        moved = v - x @ (along - versine @ along) - k @ (sinc @ along) / 2
        return moved @ _alignment(y, x).mH

    def hessian(self, x: Tensor, g: Tensor, gv: Tensor, v: Tensor) -> Tensor:
        """(I - X X^H) gv - V X^H G (Edelman et al. 1998, section 2.5.4)."""
        return self._push(x, gv) - v @ (x.mH @ g)

    def project(self, x: Tensor) -> Tensor:
        """Polar factor: the nearest orthonormal matrix, and a basis of x's own span."""
        return polar(x)

    def residual(self, x: Tensor) -> Tensor:
        """Largest entry of `|X^H X - I|`."""
        return Stiefel().residual(x)

    def random_point(self, shape: tuple[int, ...], *, generator: Any = None, **kwargs: Any) -> Tensor:
        """Uniform under rotations."""
        return polar(torch.randn(shape, generator=generator, **kwargs))

    def shape_error(self, x: Tensor) -> str:
        """Tall or square matrices."""
        return Stiefel().shape_error(x)

    def dim(self, shape: tuple[int, ...], scalars: str = "real") -> int:
        """(n - p) p, twice that over the complex numbers."""
        n, p = shape[-2:]
        return (n - p) * p * (2 if scalars == "complex" else 1)

    @classmethod
    def examples(cls) -> list[tuple[Manifold, Any]]:
        """Planes, lines, more than half of the space; every retraction."""
        return [(cls(), (6, 2)), (cls("polar"), (5, 1)), (cls("exp"), (5, 3))]


def _alignment(y: Tensor, x: Tensor) -> Tensor:
    """The unitary Q that brings the basis y Q of y's span nearest to x: the polar factor of y^H x, completed (without
    derivative) by any unitary map of what it leaves out, which is orthogonal to x."""
    core = y.mH @ x
    if plain(core):
        u, _, vh = svd(core)
        return u @ vh
    q = polar(core)
    u, s, vh = torch.linalg.svd(q.detach())
    return q + (u * (s < 0.5).unsqueeze(-2)) @ vh
