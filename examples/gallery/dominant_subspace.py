"""Dominant subspace of a symmetric matrix: principal component analysis.

python examples/gallery/dominant_subspace.py --method TrustRegion
"""

from __future__ import annotations

import dataclasses
import functools

import torch
from example import Example, randn, run
from torch import Tensor

from steepest import Grassmann, Manifold, Stiefel


@dataclasses.dataclass(frozen=True)
class DominantSubspace(Example):
    """Minimise -tr(X^T A X) / 2 over subspaces of dimension p, X^T X = I, for A with eigenvalues 1, 1/2, ..., 1/n.

    The minimum is minus half the sum of the p largest eigenvalues, at their eigenvectors (Fan 1949), and every other
    critical point is a saddle. Oracle: `torch.linalg.eigh`. The function depends on the span alone: `Grassmann` knows
    so, and `Stiefel` does not.

    Absil, Mahony and Sepulchre 2008, section 4.9.
    """

    n: int = 100
    p: int = 5
    orthonormal: bool = False
    """On Stiefel instead of Grassmann."""
    seed: int = 0

    @functools.cached_property
    def a(self) -> Tensor:
        """The matrix."""
        q = torch.linalg.qr(randn(self.n, self.n, generator=self.generator))[0]
        return (q / torch.arange(1, self.n + 1)) @ q.mT

    @property
    def manifold(self) -> Manifold:
        """Subspaces, or their bases."""
        return Stiefel() if self.orthonormal else Grassmann()

    @functools.cached_property
    def x0(self) -> Tensor:
        """A random basis."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        return self.manifold.random_point((self.n, self.p), dtype=torch.float64, generator=generator)

    def fun(self, x: Tensor) -> Tensor:
        """-tr(X^T A X) / 2."""
        return -(x * (self.a @ x)).sum() / 2

    @functools.cached_property
    def optimum(self) -> float:
        """From the eigenvalues."""
        return -float(torch.linalg.eigvalsh(self.a)[-self.p :].sum()) / 2

    def error(self, x: Tensor) -> float:
        """Sine of the largest angle to the eigenvectors' span."""
        u = torch.linalg.eigh(self.a)[1][:, -self.p :]
        return float(torch.linalg.matrix_norm(u - x @ (x.mT @ u), 2))

    @classmethod
    def tiny(cls) -> list[Example]:
        """4 x 2, 8 x 2."""
        return [cls(4, 2), cls(8, 2, True)]

    @classmethod
    def medium(cls) -> list[Example]:
        """1000 x 10."""
        return [cls(1000, 10), cls(1000, 10, True)]


if __name__ == "__main__":
    run(DominantSubspace())
