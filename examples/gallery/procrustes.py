"""The orthogonal matrix that takes one set of points nearest to another.

python examples/gallery/procrustes.py
"""

from __future__ import annotations

import dataclasses
import functools

import torch
from example import Example, randn, run
from torch import Tensor

from steepest import Manifold, Orthogonal


@dataclasses.dataclass(frozen=True)
class Procrustes(Example):
    """Minimise |A X - B|^2 / 2m over orthogonal X, for A and B `(m, n)`, where B is A turned, with noise.

    With U S V^T the singular value decomposition of A^T B the minimiser is U V^T (Schoenemann 1966). Oracle:
    `torch.linalg.svd`. The orthogonal group has two parts, of determinant 1 and -1, between which there is no path: the
    start is in that of U V^T, where there is no other minimum.
    """

    m: int = 50
    n: int = 8
    noise: float = 0.3
    seed: int = 0

    @functools.cached_property
    def a(self) -> Tensor:
        """The points, with variances from 1 down to 1 / n."""
        return randn(self.m, self.n, generator=self.generator) * torch.arange(1, self.n + 1) ** -0.5

    @functools.cached_property
    def b(self) -> Tensor:
        """The points after a turn."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        q = torch.linalg.qr(randn(self.n, self.n, generator=generator))[0]
        return self.a @ q + self.noise * randn(self.m, self.n, generator=generator)

    @property
    def manifold(self) -> Manifold:
        """Orthogonal matrices."""
        return Orthogonal()

    @functools.cached_property
    def solution(self) -> Tensor:
        """U V^T."""
        u, _, vh = torch.linalg.svd(self.a.mT @ self.b)
        return u @ vh

    @functools.cached_property
    def x0(self) -> Tensor:
        """Random, of the solution's determinant."""
        generator = torch.Generator().manual_seed(self.seed + 2)
        x = self.manifold.random_point((self.n, self.n), dtype=torch.float64, generator=generator)
        x[:, 0] *= torch.linalg.det(x).sign() * torch.linalg.det(self.solution).sign()
        return x

    def fun(self, x: Tensor) -> Tensor:
        """|A X - B|^2 / 2m."""
        return (self.a @ x - self.b).square().sum() / (2 * self.m)

    @functools.cached_property
    def optimum(self) -> float:
        """From the singular values."""
        squares = self.a.square().sum() + self.b.square().sum()
        return float(squares / 2 - torch.linalg.svdvals(self.a.mT @ self.b).sum()) / self.m

    def error(self, x: Tensor) -> float:
        """Distance to the solution."""
        return float((x - self.solution).norm())

    @classmethod
    def tiny(cls) -> list[Example]:
        """In three and in five dimensions."""
        return [cls(10, 3), cls(20, 5)]

    @classmethod
    def medium(cls) -> list[Example]:
        """In 50 dimensions."""
        return [cls(500, 50)]


if __name__ == "__main__":
    run(Procrustes())
