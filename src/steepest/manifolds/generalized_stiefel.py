"""Matrices with columns orthonormal in a positive definite scalar product."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest.linalg import double
from steepest.manifolds.base import Manifold
from steepest.manifolds.stiefel import Stiefel
from steepest.spec import tensor_field


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class GeneralizedStiefel(Manifold):
    """Matrices X `(*b, n, p)`, n >= p, real or complex, with X^H B X = I for a symmetric positive definite B: where
    generalised eigenvectors and canonical correlations live.

    With B = C C^T, Y = C^T X is a point of `Stiefel`, and everything here is what that is there: coordinates, metric
    (Re tr U^H B V and its family), retractions, geodesics. `push(X, h) = C^-T push(Y, h)`. The Cholesky factor C is
    computed once; what the manifold gives does not depend on the choice of C but for a rotation of the block Z.

    Args:
        b: B `(n, n)`, or one for each point, `(*b, n, n)`, real. Nested lists become a tensor.
        metric: as for `Stiefel`.
        retraction: as for `Stiefel`; "qr" is Cholesky-QR in the scalar product of B, "polar" the point nearest to X + V
            in its norm.

    Absil, Mahony and Sepulchre 2008, sections 2.4 and 4.5, for the eigenvalue problem; Sato and Aihara 2019
    (Cholesky QR-based retraction on the generalized Stiefel manifold), the retraction.

    >>> m = GeneralizedStiefel(torch.diag(torch.tensor([4.0, 1.0, 1.0])))
    >>> x = m.random_point((3, 2))
    >>> bool((x.T @ m.b @ x - torch.eye(2)).abs().max() < 1e-5)
    True
    """

    b: Tensor
    metric: str | float = "euclidean"
    retraction: str = "qr"

    scalars: ClassVar[tuple[str, ...]] = ("real", "complex")

    def __post_init__(self) -> None:
        object.__setattr__(self, "_flat", Stiefel(self.metric, self.retraction))
        b = tensor_field(self, "b")
        if b is None or b.ndim < 2 or b.shape[-1] != b.shape[-2] or not b.is_floating_point():
            got = "None" if b is None else f"shape {tuple(b.shape)} and dtype {b.dtype}"
            raise ValueError(f"b: expected real matrices (..., n, n), got {got}; for B = I use Stiefel()")
        full = double(b.detach())
        if not (full - full.mT).abs().max() <= 8 * torch.finfo(b.dtype).eps * full.abs().max():
            raise ValueError("b: expected a symmetric matrix; take (b + b.mT) / 2 if the asymmetry is rounding")
        factor, failed = torch.linalg.cholesky_ex(full)
        if failed.any():
            raise ValueError(
                "b: expected a positive definite matrix, got eigenvalues down to "
                f"{torch.linalg.eigvalsh(full).min().item():.2g}. Add a multiple of the identity to a covariance "
                "matrix that is singular"
            )
        object.__setattr__(self, "_factor", factor)

    @property
    def blocks(self) -> tuple[str, ...]:
        """The skew and the horizontal block of `Stiefel`."""
        return self._stiefel.blocks

    @property
    def _stiefel(self) -> Stiefel:
        return self.__dict__["_flat"]

    def _c(self, x: Tensor) -> Tensor:
        """The Cholesky factor of B, as x is; with the derivative with respect to B where there is to be one."""
        c = torch.linalg.cholesky(self.b) if self.b.requires_grad else self.__dict__["_factor"]
        return c.to(x)

    def _whiten(self, x: Tensor) -> Tensor:
        """C^H X: points and tangent vectors of this manifold -> of `Stiefel`."""
        return self._c(x).mH @ x

    def _color(self, y: Tensor) -> Tensor:
        """C^-H Y, the inverse of `_whiten`."""
        return torch.linalg.solve_triangular(self._c(y).mH, y, upper=True)

    def frame(self, x: Tensor) -> Tensor:
        """The point of `Stiefel`."""
        return self._whiten(x)

    def _push(self, f: Tensor, h: tuple[Tensor, Tensor]) -> Tensor:
        return self._color(self._stiefel._push(f, h))

    def _pull(self, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        return self._stiefel._pull(f, torch.linalg.solve_triangular(self._c(g), g, upper=False))

    def _coords(self, f: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self._stiefel._coords(f, self._whiten(v))

    def _conform(self, f: Tensor, h: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self._stiefel._conform(f, h)

    def _move(self, f: Tensor, h: tuple[Tensor, Tensor]) -> Tensor:
        return self._color(self._stiefel._move(f, h))

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """End of the geodesic that leaves x with velocity v."""
        return self._color(self._stiefel.exp(self._whiten(x), self._whiten(v)))

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """As for `Stiefel`."""
        return self._color(self._stiefel.log(self._whiten(x), self._whiten(y)))

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """As for `Stiefel`."""
        return self._stiefel.dist(self._whiten(x), self._whiten(y))

    def project(self, x: Tensor) -> Tensor:
        """The nearest point in the norm of B, tr (X - Y)^H B (X - Y): the polar factor in its scalar product."""
        return self._color(self._stiefel.project(self._whiten(x)))

    def residual(self, x: Tensor) -> Tensor:
        """Largest entry of `|X^H B X - I|`."""
        return self._stiefel.residual(self._whiten(x))

    def random_point(self, shape: tuple[int, ...], *, generator: Any = None, **kwargs: Any) -> Tensor:
        """Uniform under the linear maps that leave B as it is."""
        return self._color(self._stiefel.random_point(shape, generator=generator, **kwargs))

    def shape_error(self, x: Tensor) -> str:
        """As many rows as B, and not more columns; one B for each point, or one for all."""
        n = self.b.shape[-1]
        if x.ndim < 2 or x.shape[-2] != n or x.shape[-1] > n:
            return f"shape {tuple(x.shape)} is not (..., {n}, p) with p <= {n}: b is {n} x {n}"
        before, own = x.shape[:-2], self.b.shape[:-2]
        if any(k not in (1, m) for k, m in zip(own[::-1], before[::-1], strict=False)) or len(own) > len(before):
            return (
                f"batch dimensions {tuple(before)} do not fit those of b, {tuple(own)}: expected one b for each point"
            )
        return ""

    def dim(self, shape: tuple[int, ...], scalars: str = "real") -> int:
        """That of `Stiefel`."""
        return self._stiefel.dim(shape, scalars)

    @classmethod
    def examples(cls) -> list[tuple[Manifold, Any]]:
        """Both named metrics and one more; a well and an ill conditioned B."""
        b = torch.tensor([[2.0, 0.5, 0.0, 0.3], [0.5, 1.0, 0.2, 0.0], [0.0, 0.2, 1.5, 0.4], [0.3, 0.0, 0.4, 0.7]])
        rough = torch.diag(torch.tensor([1e-2, 1.0, 1e2]))
        return [
            (cls(b.double()), (4, 2)),
            (cls(b.double(), "canonical", "polar"), (4, 3)),
            (cls(rough.double(), 0.3, "cayley"), (3, 1)),
        ]
