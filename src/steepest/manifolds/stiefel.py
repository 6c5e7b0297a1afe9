"""Matrices with orthonormal columns."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from steepest.linalg import cholesky_qr, low_rank_expm1, polar, skew, sym_inv_sqrt
from steepest.manifolds.base import Manifold

METRICS = {"euclidean": 1.0, "canonical": math.sqrt(2.0)}
"""Scale of the skew block in the orthonormal frame of each metric."""
RETRACTIONS = ("qr", "polar")


@dataclasses.dataclass(frozen=True)
class Stiefel(Manifold):
    """Matrices X `(*b, n, p)`, n >= p, with X^T X = I.

    The coordinates are two blocks: A `(p, p)`, skew, rotates within the span of X; Z `(n, p)`, horizontal, tilts it.
    With c = 1 for the Euclidean and sqrt 2 for the canonical metric: `push(X, (A, Z)) = c X skew(A) + (I - X X^T) Z`.

    Args:
        metric: "euclidean", of the embedding, or "canonical", tr(U^T (I - X X^T / 2) V), of the quotient O(n)/O(n-p).
        retraction: "qr", by one Cholesky factorisation, or "polar", the nearest point.

    Edelman, Arias and Smith 1998 (physics/9806030), sections 2.2 and 2.4.

    >>> x = Stiefel().random_point((5, 2))
    >>> bool(Stiefel().residual(x) < 1e-5)
    True
    """

    metric: str = "euclidean"
    retraction: str = "qr"

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"metric: unknown {self.metric!r}, expected one of {', '.join(METRICS)}")
        if self.retraction not in RETRACTIONS:
            raise ValueError(f"retraction: unknown {self.retraction!r}, expected one of {', '.join(RETRACTIONS)}")

    @property
    def blocks(self) -> tuple[str, ...]:
        """The skew and the horizontal block."""
        return ("skew", "horizontal")

    @property
    def scale(self) -> float:
        """Scale c of the skew block."""
        return METRICS[self.metric]

    def _push(self, x: Tensor, h: tuple[Tensor, Tensor]) -> Tensor:
        a, z = h
        return z + x @ (self.scale * skew(a) - x.mT @ z)

    def _pull(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        xg = x.mT @ g
        return self.scale * skew(xg), g - x @ xg

    def _coords(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        xv = x.mT @ v
        return skew(xv) / self.scale, v - x @ xv

    def _conform(self, x: Tensor, h: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        a, z = h
        return skew(a), z - x @ (x.mT @ z)

    def _move(self, x: Tensor, h: tuple[Tensor, Tensor]) -> Tensor:
        y = x + self._push(x, h)
        return cholesky_qr(y) if self.retraction == "qr" else y @ sym_inv_sqrt(y.mT @ y)  # both mend x's own rounding

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """End of the geodesic that leaves x with velocity v (Edelman et al. 1998, equations 2.45 and 2.42)."""
        return _euclidean_exp(x, v) if self.metric == "euclidean" else _canonical_exp(x, v)

    def project(self, x: Tensor) -> Tensor:
        """Polar factor. Where x has not full rank no nearest point is unique, and none is returned: the residual of the
        result tells."""
        return polar(x)

    def residual(self, x: Tensor) -> Tensor:
        """Largest entry of `|X^T X - I|`."""
        eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        return (x.mT @ x - eye).abs().amax((-2, -1))

    def random_point(self, shape: tuple[int, ...], *, generator: Any = None, **kwargs: Any) -> Tensor:
        """Uniform under rotations: the polar factor of a Gaussian matrix."""
        return polar(torch.randn(shape, generator=generator, **kwargs))

    def shape_error(self, x: Tensor) -> str:
        """Tall or square matrices."""
        if x.ndim >= 2 and x.shape[-2] >= x.shape[-1]:
            return ""
        return (
            f"shape {tuple(x.shape)} is not (..., n, p) with n >= p: a wide matrix cannot have orthonormal columns. "
            "For orthonormal rows constrain the transpose: constrain(..., matrix='o i -> i o')."
        )

    @classmethod
    def examples(cls) -> list[tuple[Manifold, Any]]:
        """Both metrics and retractions; tall, square, one column, 1 x 1."""
        return [
            (cls(), (6, 3)),
            (cls("canonical"), (5, 2)),
            (cls("canonical", "polar"), (4, 4)),
            (cls("euclidean", "polar"), (7, 2)),
            (cls(), (4, 1)),
            (cls(), (3, 3)),
            (cls(), (1, 1)),
        ]


def _euclidean_exp(x: Tensor, v: Tensor) -> Tensor:
    """[X V] expm([[A, -S], [I, A]]) [expm(-A); 0] with A = X^T V, S = V^T V: no factorisation, smooth in v."""
    a, s = skew(x.mT @ v), v.mT @ v
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device).expand_as(a)
    generator = torch.cat([torch.cat([a, -s], -1), torch.cat([eye, a], -1)], -2)
    first = torch.linalg.matrix_exp(generator)[..., : x.shape[-1]]
    return torch.cat([x, v], -1) @ first @ torch.linalg.matrix_exp(-a)


def _canonical_exp(x: Tensor, v: Tensor) -> Tensor:
    """expm(K X^T - X K^T) X with K = (I - X X^T / 2) V."""
    k = v - x @ (x.mT @ v) / 2
    return x + low_rank_expm1(torch.cat([k, x], -1), torch.cat([x, -k], -1), x)
