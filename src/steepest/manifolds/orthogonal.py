"""Orthogonal, special orthogonal and unitary matrices: the compact classical groups as manifolds."""

from __future__ import annotations

import abc
import dataclasses
import math
import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest.linalg import cholesky_qr, double, expm, polar, skew, sym, sym_inv_sqrt, unitary_angles, unitary_log
from steepest.linalg.reorthonormalize import reorthonormalize
from steepest.manifolds.base import Manifold
from steepest.manifolds.geodesic import ConvergenceWarning

RETRACTIONS = ("qr", "polar", "cayley", "exp")


class UnitaryGroup(Manifold):
    """Square matrices X `(*b, n, n)` with X^H X = I and the metric Re tr(U^H V), which is the same on both sides of X.

    One block of coordinates A `(n, n)`, skew: `push(X, A) = X skew(A)`. The frame is left-invariant, so coordinates of
    momentum stay as they are when X moves. The geodesics are X expm(t A).
    """

    retraction: str

    parallel: ClassVar[bool] = True
    identity_carry: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.retraction not in RETRACTIONS:
            raise ValueError(f"retraction: unknown {self.retraction!r}, expected one of {', '.join(RETRACTIONS)}")

    @property
    def blocks(self) -> tuple[str, ...]:
        """The skew block."""
        return ("skew",)

    def _push(self, x: Tensor, h: Tensor) -> Tensor:
        return x @ skew(h)

    def _pull(self, x: Tensor, g: Tensor) -> Tensor:
        return skew(x.mH @ g)

    def _coords(self, x: Tensor, v: Tensor) -> Tensor:
        return skew(x.mH @ v)

    def _conform(self, x: Tensor, h: Tensor) -> Tensor:
        return skew(h)

    def _move(self, x: Tensor, h: Tensor) -> Tensor:
        a = skew(h)
        if self.retraction == "exp":
            return reorthonormalize(x @ expm(a))
        if self.retraction == "cayley":
            return reorthonormalize(_cayley(x, a))
        y = x + x @ a
        return cholesky_qr(y) if self.retraction == "qr" else y @ sym_inv_sqrt(y.mH @ y)  # all mend x's own rounding

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """X expm(X^H V)."""
        return reorthonormalize(x @ expm(self._coords(x, v)))

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """X logm(X^H Y), the principal logarithm. NaN, with a warning, where X^H Y has the eigenvalue -1: there either
        several geodesics are shortest, or, between components, there is none."""
        a = unitary_log(_turn(x, y)).to(x.dtype)
        if failed := int(a.detach().isnan().any((-2, -1)).sum()):
            warnings.warn(
                f"log: of {a[..., 0, 0].numel()} pairs of points, {failed} differ by a turn of pi or by a reflection: "
                "they have no unique shortest geodesic, or none at all. The result is NaN there.",
                ConvergenceWarning,
                stacklevel=2,
            )
        return x @ a

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """Root of the summed squares of the arguments of the eigenvalues of X^H Y; infinite between components."""
        q = _turn(x, y)
        a = unitary_log(q)
        unique = ~a.detach().isnan().any((-2, -1))
        length = torch.linalg.matrix_norm(torch.where(unique[..., None, None], a, 0))
        other = torch.where(self._connected(q), torch.linalg.vector_norm(unitary_angles(q.detach()), dim=-1), math.inf)
        return torch.where(unique, length, other).to(x.real.dtype)

    @abc.abstractmethod
    def _connected(self, q: Tensor) -> Tensor:
        """Whether the matrices q lie in the component of the identity, shape `(*b,)`."""

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Parallel transport along the shortest geodesic, X B -> Y expm(-A / 2) B expm(A / 2) with Y = X expm(A)."""
        half = expm(self._coords(x, self.log(x, y)) / 2)
        return y @ half.mH @ self._coords(x, v) @ half

    def hessian(self, x: Tensor, g: Tensor, gv: Tensor, v: Tensor) -> Tensor:
        """X skew(X^H (gv - V sym(X^H G))): the metric is that of the embedding (Absil, Mahony and Trumpf 2013)."""
        return x @ skew(x.mH @ (gv - v @ sym(x.mH @ g)))

    def shape_error(self, x: Tensor) -> str:
        """Square matrices."""
        if x.ndim >= 2 and x.shape[-2] == x.shape[-1]:
            return ""
        return f"shape {tuple(x.shape)} is not (..., n, n); for tall matrices with orthonormal columns use Stiefel()"

    def dim(self, shape: tuple[int, ...], scalars: str = "real") -> int:
        """n (n - 1) / 2 for real, n^2 for complex matrices."""
        n = shape[-1]
        return n * n if scalars == "complex" else n * (n - 1) // 2


def haar(shape: tuple[int, ...], generator: Any, **kwargs: Any) -> Tensor:
    """Uniform under left and right multiplication: the polar factor of a Gaussian matrix."""
    return polar(torch.randn(shape, generator=generator, **kwargs))


def defect(x: Tensor) -> Tensor:
    """Largest entry of `|X^H X - I|`, shape `(*b,)`."""
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    return (x.mH @ x - identity).abs().amax((-2, -1))


def _cayley(x: Tensor, a: Tensor) -> Tensor:
    """X (I + A / 2) (I - A / 2)^-1 = -X + 2 X (I + A / 2) (I + A^H A / 4)^-1 for A skew, by one Cholesky factorisation:
    all these matrices commute."""
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    lower = torch.linalg.cholesky_ex(identity + a.mH @ a / 4).L
    inverse = torch.cholesky_solve(identity + a / 2, lower)
    return 2 * x @ inverse - x


def determinant(q: Tensor) -> Tensor:
    """The determinant, 1 or -1, of orthogonal q `(*b, n, n)`.

    The eigenvalues of sym(q) are the cosines of the rotation angles, each twice, and the real eigenvalues of q. In
    ascending order and in pairs from the first, they are equal if the eigenvalue -1 comes an even number of times, and
    else the gaps add up to 2, with a last one, if n is odd, paired with 1. Unlike a batched LU decomposition, symmetric
    eigenvalues are right at every size.
    """
    w = torch.linalg.eigvalsh(sym(q).nan_to_num())  # eigenvalues of NaN would raise
    if w.shape[-1] % 2:
        w = torch.cat([w, torch.ones_like(w[..., :1])], -1)
    gaps = (w[..., 1::2] - w[..., ::2]).sum(-1)
    return torch.where(gaps > 1, -1, 1).to(w.dtype)


@dataclasses.dataclass(frozen=True)
class Orthogonal(UnitaryGroup):
    """Orthogonal matrices X `(*b, n, n)`, X^T X = I, with the metric tr(U^T V): rotations and reflections.

    The coordinates are one skew block A: `push(X, A) = X skew(A)`. A step never leaves the component, det X = 1 or -1,
    that it starts from; between the two there is no geodesic, and the distance is infinite.

    Args:
        retraction: of X A: "qr", of X + X A by one Cholesky factorisation; "polar", the matrix nearest to X + X A;
            "cayley", X (I + A/2) (I - A/2)^-1; "exp", X expm(A), the geodesic. All but "qr" are of second order.

    Edelman, Arias and Smith 1998 (physics/9806030), for the geodesics.

    >>> x = torch.tensor([[0.0, -1.0], [1.0, 0.0]])  # a quarter turn
    >>> round(Orthogonal().dist(torch.eye(2), x).item(), 4)  # pi / sqrt 2
    2.2214
    """

    retraction: str = "qr"

    def _connected(self, q: Tensor) -> Tensor:
        return determinant(q.detach()) > 0

    def project(self, x: Tensor) -> Tensor:
        """Polar factor. Where x has not full rank no nearest point is unique, and none is returned: the residual of the
        result tells."""
        return polar(x)

    def residual(self, x: Tensor) -> Tensor:
        """Largest entry of `|X^T X - I|`."""
        return defect(x)

    def random_point(self, shape: tuple[int, ...], *, generator: Any = None, **kwargs: Any) -> Tensor:
        """Uniform (Haar), in either component."""
        return haar(shape, generator, **kwargs)

    @classmethod
    def examples(cls) -> list[tuple[Manifold, Any]]:
        """Every retraction; odd and even sizes, 1 x 1."""
        return [(cls(), (4, 4)), (cls("polar"), (3, 3)), (cls("cayley"), (2, 2)), (cls("exp"), (5, 5)), (cls(), (1, 1))]


@dataclasses.dataclass(frozen=True)
class SpecialOrthogonal(UnitaryGroup):
    """Rotations: orthogonal matrices X `(*b, n, n)`, X^T X = I, with determinant one, and the metric tr(U^T V).

    The coordinates are one skew block A: `push(X, A) = X skew(A)`. The distance of two rotations of space is sqrt 2
    times the angle between them.

    Args:
        retraction: of X A: "qr", of X + X A by one Cholesky factorisation; "polar", the matrix nearest to X + X A;
            "cayley", X (I + A/2) (I - A/2)^-1; "exp", X expm(A), the geodesic. None leaves the rotations, and all but
            "qr" are of second order.

    Edelman, Arias and Smith 1998 (physics/9806030), for the geodesics; `project` is Kabsch's (1976).

    >>> x = SpecialOrthogonal().project(torch.diag(torch.tensor([3.0, 2.0, -1.0])))
    >>> x.diagonal().tolist()
    [1.0, 1.0, 1.0]
    """

    retraction: str = "qr"

    def _connected(self, q: Tensor) -> Tensor:
        return torch.ones(q.shape[:-2], dtype=torch.bool, device=q.device)

    def project(self, x: Tensor) -> Tensor:
        """The nearest rotation: U diag(1, ..., 1, det(U V^T)) V^T of x = U S V^T, the smallest singular value last.

        Its derivative is right where det x > 0. Where the smallest two singular values are equal and det x < 0 several
        rotations are nearest, and one of them is returned."""
        u, _, vh = torch.linalg.svd(x.detach())
        v = vh[..., -1:, :].mH
        flip = (1 - determinant(u @ vh))[..., None, None]  # 0 or 2
        return polar(x - flip * (x @ v) @ v.mH)

    def residual(self, x: Tensor) -> Tensor:
        """Largest entry of `|X^T X - I|`; at least 2 where the determinant is -1."""
        return defect(x) + 1 - determinant(x)

    def random_point(self, shape: tuple[int, ...], *, generator: Any = None, **kwargs: Any) -> Tensor:
        """Uniform (Haar): an orthogonal one, with one column reversed where its determinant is -1."""
        x = haar(shape, generator, **kwargs)
        sign = determinant(x).to(x.dtype)[..., None, None]
        return torch.cat([sign * x[..., :1], x[..., 1:]], -1)

    @classmethod
    def examples(cls) -> list[tuple[Manifold, Any]]:
        """Every retraction; odd and even sizes, the plane, 1 x 1."""
        return [(cls(), (3, 3)), (cls("polar"), (4, 4)), (cls("cayley"), (2, 2)), (cls("exp"), (5, 5)), (cls(), (1, 1))]


@dataclasses.dataclass(frozen=True)
class Unitary(UnitaryGroup):
    """Unitary matrices X `(*b, n, n)`, complex with X^H X = I, and the metric Re tr(U^H V).

    The coordinates are one skew-Hermitian block A: `push(X, A) = X skew(A)`. For n = 1 these are the phases.

    Args:
        retraction: of X A: "qr", of X + X A by one Cholesky factorisation; "polar", the matrix nearest to X + X A;
            "cayley", X (I + A/2) (I - A/2)^-1; "exp", X expm(A), the geodesic. All but "qr" are of second order.

    Abrudan, Eriksson and Koivunen 2008, Steepest descent algorithms for optimization under unitary matrix constraint.

    >>> x = torch.tensor([[1j]])  # a phase of 90 degrees
    >>> round(Unitary().dist(torch.ones_like(x), x).item(), 4)
    1.5708
    """

    retraction: str = "qr"

    scalars: ClassVar[tuple[str, ...]] = ("complex",)

    def _connected(self, q: Tensor) -> Tensor:
        return torch.ones(q.shape[:-2], dtype=torch.bool, device=q.device)

    def project(self, x: Tensor) -> Tensor:
        """Polar factor. Where x has not full rank no nearest point is unique, and none is returned: the residual of the
        result tells."""
        return polar(x)

    def residual(self, x: Tensor) -> Tensor:
        """Largest entry of `|X^H X - I|`."""
        return defect(x)

    def random_point(
        self, shape: tuple[int, ...], *, generator: Any = None, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> Tensor:
        """Uniform under left and right multiplication (Haar), in the complex type of the default precision, or in
        `dtype`."""
        if dtype is not None and not dtype.is_complex:
            raise ValueError(f"dtype: unitary matrices are complex, got {dtype}; for real ones use Orthogonal()")
        dtype = dtype or torch.promote_types(torch.get_default_dtype(), torch.complex64)
        return haar(shape, generator, dtype=dtype, **kwargs)

    @classmethod
    def examples(cls) -> list[tuple[Manifold, Any]]:
        """Every retraction; odd and even sizes, 1 x 1."""
        return [(cls(), (3, 3)), (cls("polar"), (4, 4)), (cls("cayley"), (2, 2)), (cls("exp"), (3, 3)), (cls(), (1, 1))]


def _turn(x: Tensor, y: Tensor) -> Tensor:
    """X^H Y in float64, orthonormal to that precision: near a turn of pi the logarithm loses what is missing."""
    return reorthonormalize(double(x).mH @ double(y))
