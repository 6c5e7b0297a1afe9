"""Symplectic bases."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest.manifolds.base import Manifold
from steepest.manifolds.quadratic import Quadratic


@dataclasses.dataclass(frozen=True)
class SymplecticStiefel(Quadratic):
    """Matrices X `(*b, 2n, 2p)`, n >= p, with X^H J_n X = J_p, J = [[0, I], [-I, 0]]: symplectic bases of symplectic
    subspaces, the symplectic group for p = n. Complex ones are conjugate symplectic (X^H, not X^T).

    The metric is the Euclidean one, tr(U^H V), and the coordinates are one block: `push(X, h)` is the orthogonal
    projection h - J X S, S skew with G S + S G = (J X)^H h - h^H J X, G = X^H X. J is applied by exchanging halves.

    The set is not bounded, and there is no uniform distribution on it: `random_point` is a step of size about one from
    a random orthonormal symplectic basis.

    Args:
        retraction: "cayley", by a system of size 2p, or "exponential", which no step is too long for; see `Quadratic`.

    Gao, Son, Absil and Stykel 2021 (2006.15226) for the manifold and its retraction; Gao, Son and Stykel 2021
    (2103.00459) for the Euclidean metric, whose geodesics are integrated here; Bendokat and Zimmermann 2021
    (2108.12447) for the retraction in size 2p.

    >>> x = SymplecticStiefel().random_point((6, 2))
    >>> x1, x2 = x[:, 0], x[:, 1]
    >>> round((x1[:3] @ x2[3:] - x1[3:] @ x2[:3]).item(), 4)  # the symplectic form of the two columns
    1.0
    """

    retraction: str = "cayley"

    sign: ClassVar[int] = -1

    def __post_init__(self) -> None:
        self._check_retraction()

    def _form(self, x: Tensor) -> Tensor:
        top, bottom = x.chunk(2, -2)
        return torch.cat([bottom, -top], -2)

    def _j(self, m: Tensor) -> Tensor:
        return self._form(m)

    def random_point(self, shape: tuple[int, ...], *, generator: Any = None, **kwargs: Any) -> Tensor:
        """A Cayley step of size about one from a random orthonormal point; not uniform, which nothing is here."""
        return self._random(shape, generator, **kwargs)

    def shape_error(self, x: Tensor) -> str:
        """Even numbers of rows and columns, tall or square."""
        if x.ndim >= 2 and x.shape[-2] >= x.shape[-1] and x.shape[-2] % 2 == x.shape[-1] % 2 == 0 < x.shape[-1]:
            return ""
        return (
            f"shape {tuple(x.shape)} is not (..., 2n, 2p) with n >= p >= 1: the columns of a symplectic basis, and the "
            "coordinates of the space, come in pairs"
        )

    @classmethod
    def examples(cls) -> list[tuple[Manifold, Any]]:
        """Tall; the symplectic group of the plane; both retractions."""
        return [(cls(), (6, 4)), (cls("exponential"), (2, 2))]
