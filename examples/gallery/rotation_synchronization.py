"""Rotations from what they are relative to each other.

python examples/gallery/rotation_synchronization.py
"""

from __future__ import annotations

import dataclasses
import functools

import torch
from example import Example, run
from torch import Tensor

from steepest import Manifold, SpecialOrthogonal


@dataclasses.dataclass(frozen=True)
class RotationSynchronization(Example):
    """Minimise the mean of |R_ij - X_i X_j^T|^2 / 2 over n rotations X_i of space, for pairs (i, j) of a graph.

    R_ij = Q_i Q_j^T of planted rotations, so that the minimum is zero, at the Q_i, all turned alike. Oracle: the
    spectral method, the three dominant eigenvectors of the matrix of blocks R_ij divided by the degrees, rounded to
    rotations, which are exact without noise. The n rotations are one batch `(n, 3, 3)`, a product of manifolds.

    Singer 2011, "Angular synchronization by eigenvectors and semidefinite programming"; Boumal 2016.
    """

    n: int = 30
    density: float = 0.5
    seed: int = 0

    @functools.cached_property
    def planted(self) -> Tensor:
        """The Q_i, `(n, 3, 3)`."""
        shape = (self.n, 3, 3)
        return SpecialOrthogonal().random_point(shape, dtype=torch.float64, generator=self.generator)

    @functools.cached_property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """i and j of each pair, i < j: a ring, and others at random."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        chosen = torch.rand(self.n, self.n, generator=generator) < self.density
        ring = torch.arange(self.n)
        chosen[ring, (ring + 1) % self.n] = chosen[(ring + 1) % self.n, ring] = True
        i, j = chosen.triu(1).nonzero(as_tuple=True)
        return i, j

    @functools.cached_property
    def relative(self) -> Tensor:
        """The R_ij, `(pairs, 3, 3)`."""
        i, j = self.pairs
        return self.planted[i] @ self.planted[j].mT

    @property
    def manifold(self) -> Manifold:
        """Rotations."""
        return SpecialOrthogonal()

    @functools.cached_property
    def x0(self) -> Tensor:
        """Random rotations."""
        generator = torch.Generator().manual_seed(self.seed + 2)
        return self.manifold.random_point((self.n, 3, 3), dtype=torch.float64, generator=generator)

    def fun(self, x: Tensor) -> Tensor:
        """Half the mean squared error of the pairs."""
        i, j = self.pairs
        return (self.relative - x[i] @ x[j].mT).square().sum() / (2 * len(i))

    @functools.cached_property
    def solution(self) -> Tensor:
        """By eigenvectors."""
        blocks = torch.zeros(self.n, self.n, 3, 3, dtype=torch.float64)
        i, j = self.pairs
        blocks[i, j], blocks[j, i] = self.relative, self.relative.mT
        degree = (blocks.abs().sum((-2, -1)) > 0).sum(1, dtype=torch.float64).rsqrt()
        blocks = blocks * (degree[:, None] * degree)[..., None, None]
        matrix = blocks.transpose(1, 2).reshape(3 * self.n, 3 * self.n)
        vectors = torch.linalg.eigh(matrix)[1][:, -3:].reshape(self.n, 3, 3)
        u, _, vh = torch.linalg.svd(vectors)
        x = u @ vh
        x = x * torch.linalg.det(x[0]).sign()  # all of them have the same determinant
        return x

    @functools.cached_property
    def optimum(self) -> float:
        """Zero; the spectral method's to rounding."""
        value = float(self.fun(self.solution))
        assert value < 1e-20, value
        return 0.0

    def error(self, x: Tensor) -> float:
        """Largest angle to the spectral method's rotations, after turning all alike."""
        turn = x[0].mT @ self.solution[0]
        return float((x @ turn - self.solution).norm(dim=(-2, -1)).max())

    @classmethod
    def tiny(cls) -> list[Example]:
        """Two and six rotations."""
        return [cls(2, 1.0), cls(6, 1.0)]

    @classmethod
    def medium(cls) -> list[Example]:
        """200 rotations."""
        return [cls(200, 0.2)]


if __name__ == "__main__":
    run(RotationSynchronization())
