"""Matrices with orthonormal columns."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest.linalg import cholesky_qr, expm, polar, skew, sym, sym_inv_sqrt, triangular_inverse
from steepest.linalg.products import add_product
from steepest.linalg.reorthonormalize import reorthonormalize
from steepest.manifolds.base import Manifold
from steepest.manifolds.orthogonal import Orthogonal, Unitary, UnitaryGroup
from steepest.manifolds.stiefel_log import stiefel_log

METRICS = {"euclidean": -0.5, "canonical": 0.0}
"""Members of the family of metrics that have names."""
RETRACTIONS = ("qr", "polar", "cayley", "exp")


@dataclasses.dataclass(frozen=True)
class Stiefel(Manifold):
    """Matrices X `(*b, n, p)`, n >= p, real or complex, with X^H X = I.

    The coordinates are two blocks: A `(p, p)`, skew, rotates within the span of X; Z `(n, p)`, horizontal, tilts it.
    The metric is Re tr U^H (I - (2 a + 1) / (2 (a + 1)) X X^H) V for a number a > -1, and with c = sqrt(2 (a + 1)) the
    frame is `push(X, (A, Z)) = c X skew(A) + (I - X X^H) Z`.

    `exp` takes two matrix exponentials, of sizes 2p and p, the canonical metric one. `log` is Newton's method in that
    size (`stiefel_log`): the shortest geodesic, as far as tests can tell, up to the injectivity radius, which is pi for
    the Euclidean metric (Zimmermann and Stoye 2024) and about 0.91 pi for the canonical one (Absil and Mataigne 2024;
    at most pi / sqrt 2 on complex points); and some short geodesic beyond. Parallel transport has no formula in this
    size: `transport` keeps A and projects Z.

    Args:
        metric: "euclidean", of the embedding, a = -1/2; "canonical", tr U^H (I - X X^H / 2) V, of the quotient
            O(n) / O(n - p), a = 0; or the number a.
        retraction: "qr", by one Cholesky factorisation; "polar", the nearest point to X + V; "cayley", the Cayley
            transform of a skew n x n matrix, here in size p, and one Newton-Schulz step against drift; "exp", with the
            same step.

    Edelman, Arias and Smith 1998 (physics/9806030), sections 2.2 and 2.4; Hueper, Markina and Silva Leite 2021, the
    family, and Zimmermann and Hueper 2022 (2103.12046), its geodesics; Wen and Yin 2013, the Cayley transform.

    >>> x = Stiefel().random_point((5, 2))
    >>> bool(Stiefel().residual(x) < 1e-5)
    True
    """

    metric: str | float = "euclidean"
    retraction: str = "qr"

    scalars: ClassVar[tuple[str, ...]] = ("real", "complex")

    def __post_init__(self) -> None:
        if isinstance(self.metric, str):
            if self.metric not in METRICS:
                raise ValueError(
                    f"metric: unknown {self.metric!r}, expected {', '.join(METRICS)}, or a number above -1"
                )
        elif isinstance(self.metric, bool) or not -1 < self.metric < math.inf:
            raise ValueError(f"metric: {self.metric} gives no inner product, expected a number above -1, or a name")
        if self.retraction not in RETRACTIONS:
            raise ValueError(f"retraction: unknown {self.retraction!r}, expected one of {', '.join(RETRACTIONS)}")

    @property
    def blocks(self) -> tuple[str, ...]:
        """The skew and the horizontal block."""
        return ("skew", "horizontal")

    @property
    def scale(self) -> float:
        """Scale c of the skew block."""
        return math.sqrt(2 * (1 + (METRICS[self.metric] if isinstance(self.metric, str) else self.metric)))

    def _push(self, x: Tensor, h: tuple[Tensor, Tensor]) -> Tensor:
        a, z = h
        return add_product(z, x, self.scale * skew(a) - x.mH @ z)

    def _pull(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        xg = x.mH @ g
        return self.scale * skew(xg), add_product(g, x, xg, -1)

    def _coords(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        xv = x.mH @ v
        return skew(xv) / self.scale, add_product(v, x, xv, -1)

    def _conform(self, x: Tensor, h: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        a, z = h
        return skew(a), add_product(z, x, x.mH @ z, -1)

    def _move(self, x: Tensor, h: tuple[Tensor, Tensor]) -> Tensor:
        if self.retraction == "cayley":
            a, z = self._conform(x, h)
            return reorthonormalize(_cayley(x, self.scale * a, z))
        return self.retract(x, self._push(x, h))

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        """A point y = x + v + O(|v|^2), for v tangent at x, as `retraction` says; all mend x's own rounding."""
        if self.retraction == "exp":
            return reorthonormalize(self.exp(x, v))
        if self.retraction == "cayley":
            return self._move(x, self._coords(x, v))
        y = x + v
        return cholesky_qr(y) if self.retraction == "qr" else y @ sym_inv_sqrt(y.mH @ y)

    def grad(self, x: Tensor, g: Tensor) -> Tensor:
        """G - X X^H G + c^2 X skew(X^H G), the frame's `push(pull(G))` with one product less."""
        xg = x.mH @ g
        return add_product(g, x, self.scale**2 * skew(xg) - xg)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """End of the geodesic that leaves x with velocity v.

        With A = X^H V and b = 1 / c^2 it is [X V] expm(G) [I; 0] expm((1 - 2 b) A), where

            G = [[(2 b - 1) A, (2 b - 2) A^2 - V^H V], [I, A]]

        stands for V X^H - X V^H - (2 - 2 b) X A X^H in the span of X and V (Zimmermann and Hueper 2022; for b = 1,
        Edelman et al. 1998, section 2.2.2). There is no factorisation, so that it is smooth everywhere.
        """
        a, b, corner = skew(x.mH @ v), 1 / self.scale**2, v.mH @ v
        if b != 1:
            corner = corner + (2 - 2 * b) * (a @ a)
        eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        lower = torch.cat([eye.expand_as(a), a], -1)
        generator = torch.cat([torch.cat([(2 * b - 1) * a, -corner], -1), lower], -2)
        inner = expm(generator)[..., : x.shape[-1]]
        if self.metric not in ("canonical", 0):  # there the other factor is the identity
            inner = inner @ expm((1 - 2 * b) * a)
        return torch.cat([x, v], -1) @ inner

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The v with `exp(x, v) == y` that is shorter than the injectivity radius; where there is none, a short one.
        NaN, with a warning, where none is found, as between square real matrices with different determinants."""
        if x.shape[-1] == x.shape[-2]:
            return _group(x).log(x, y)
        return self._push(x, stiefel_log(x, y, self.scale, lambda h: self.exp(x, self._push(x, h))))

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """Length of `log(x, y)`; infinite between square real matrices with different determinants."""
        if x.shape[-1] == x.shape[-2]:
            return _group(x).dist(x, y) / self.scale
        return self.norm(x, self.log(x, y))

    def hessian(self, x: Tensor, g: Tensor, gv: Tensor, v: Tensor) -> Tensor:
        """Gradient of the covector gv - V sym(S) + (1 - b) (X (V^H G + A S + S A) - G A), with S = X^H G, A = X^H V and
        b = 1 / c^2: of the bilinear form <gv, W> + <G, B(V, W)>, where B(V, V) is the acceleration of `exp`, -X V^H V +
        2 (1 - b) (V A - X A^2)."""
        s, a = x.mH @ g, skew(x.mH @ v)
        covector = gv - v @ sym(s)
        if (b := 1 / self.scale**2) != 1:
            covector = covector + (1 - b) * (x @ (v.mH @ g + a @ s + s @ a) - g @ a)
        return self.grad(x, covector)

    def project(self, x: Tensor) -> Tensor:
        """Polar factor. Where x has not full rank no nearest point is unique, and none is returned: the residual of the
        result tells."""
        return polar(x)

    def residual(self, x: Tensor) -> Tensor:
        """Largest entry of `|X^H X - I|`."""
        eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        return (x.mH @ x - eye).abs().amax((-2, -1))

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

    def dim(self, shape: tuple[int, ...], scalars: str = "real") -> int:
        """n p less the conditions of X^H X = I."""
        n, p = shape[-2:]
        return 2 * n * p - p * p if scalars == "complex" else n * p - p * (p + 1) // 2

    @classmethod
    def examples(cls) -> list[tuple[Manifold, Any]]:
        """Every kind of metric and each retraction; tall, square, one column, 1 x 1."""
        return [
            (cls(), (6, 3)),
            (cls("canonical"), (5, 2)),
            (cls("canonical", "polar"), (2, 2)),
            (cls("euclidean", "polar"), (7, 2)),
            (cls(0.5, "cayley"), (6, 2)),
            (cls("canonical", "exp"), (5, 3)),
            (cls(), (4, 1)),
            (cls(), (3, 3)),
            (cls(), (1, 1)),
        ]


def _group(x: Tensor) -> UnitaryGroup:
    """What Stiefel is for square x, where all metrics are multiples of one and have the same geodesics."""
    return Unitary() if x.is_complex() else Orthogonal()


def _cayley(x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    """(2 X + N) (I + N^H N / 4 - A / 2)^-1 - X. With I + N^H N / 4 = L L^H and K = L^-1 (A / 2) L^-H, which is skew,
    that inverse is L^-H (I + K) (I + K^H K)^-1 L^-1: two Cholesky factorisations, which are right in every batch where
    torch's LU on a CPU is not."""
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    inverse = triangular_inverse(torch.linalg.cholesky_ex(eye + n.mH @ n / 4).L)
    k = inverse @ (a / 2) @ inverse.mH
    core = torch.cholesky_solve(inverse, torch.linalg.cholesky_ex(eye + k.mH @ k).L)
    return (2 * x + n) @ (inverse.mH @ (core + k @ core)) - x
