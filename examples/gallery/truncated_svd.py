"""Singular vectors of the largest singular values.

python examples/gallery/truncated_svd.py
"""

from __future__ import annotations

import dataclasses
import functools

import torch
from example import Example, randn, run
from torch import Tensor

from steepest import Manifold, Product, Stiefel


@dataclasses.dataclass(frozen=True)
class TruncatedSVD(Example):
    """Minimise -tr(U^T A V N) over pairs of Stiefel manifolds, with N = diag(p, ..., 2, 1).

    The different weights make the minimiser the singular vectors themselves, in order, up to a sign for each pair:
    -sum_i N_ii s_i is the minimum (von Neumann 1937), and the other critical points are saddles. Oracle:
    `torch.linalg.svd`. Singular values of A are 1, 0.8, 0.64, ...

    Sato and Iwai 2013, "A Riemannian optimization approach to the matrix singular value decomposition".
    """

    m: int = 40
    n: int = 30
    p: int = 4
    seed: int = 0

    @functools.cached_property
    def a(self) -> Tensor:
        """The matrix."""
        generator = self.generator
        k = min(self.m, self.n)
        u, v = (torch.linalg.qr(randn(size, k, generator=generator))[0] for size in (self.m, self.n))
        return (u * 0.8 ** torch.arange(k)) @ v.mT

    @property
    def manifold(self) -> Manifold:
        """U and V."""
        return Product((Stiefel(), Stiefel()))

    @functools.cached_property
    def x0(self) -> tuple[Tensor, Tensor]:
        """Random matrices."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        shapes = ((self.m, self.p), (self.n, self.p))
        return self.manifold.random_point(shapes, dtype=torch.float64, generator=generator)

    @functools.cached_property
    def weights(self) -> Tensor:
        """The diagonal of N."""
        return torch.arange(self.p, 0, -1, dtype=torch.float64)

    def fun(self, x: tuple[Tensor, Tensor]) -> Tensor:
        """-tr(U^T A V N)."""
        u, v = x
        return -((u * (self.a @ v)).sum(0) * self.weights).sum()

    @functools.cached_property
    def optimum(self) -> float:
        """From the singular values."""
        return -float(torch.linalg.svdvals(self.a)[: self.p] @ self.weights)

    def error(self, x: tuple[Tensor, Tensor]) -> float:
        """Distance to the truncated matrix, relative to its norm."""
        u, v = x
        left, s, right = torch.linalg.svd(self.a)
        best = (left[:, : self.p] * s[: self.p]) @ right[: self.p]
        found = (u * (u.mT @ self.a @ v).diagonal()) @ v.mT
        return float((found - best).norm() / best.norm())

    @classmethod
    def tiny(cls) -> list[Example]:
        """Of 4 x 3 one, of 6 x 5 two."""
        return [cls(4, 3, 1), cls(6, 5, 2)]

    @classmethod
    def medium(cls) -> list[Example]:
        """Of 500 x 300 eight."""
        return [cls(500, 300, 8)]


if __name__ == "__main__":
    run(TruncatedSVD())
