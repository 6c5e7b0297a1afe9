"""A subspace that many points share, in spite of those that lie elsewhere: robust principal components.

python examples/gallery/robust_subspace.py
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import torch
from example import Example, randn, run
from torch import Tensor

from steepest import Grassmann, Manifold


@dataclasses.dataclass(frozen=True)
class RobustSubspace(Example):
    """Minimise the mean of sqrt(|y_i - X X^T y_i|^2 + delta^2) - delta over subspaces, for unit vectors y_i.

    Most of the y_i lie in a planted subspace of dimension p but for a little noise, the others, outliers, anywhere.
    Squares would be ruled by the outliers; distances nearly ignore them. Oracle: iteratively reweighted least squares,
    X <- dominant eigenvectors of sum_i w_i y_i y_i^T with w_i one over the root above, which lets the function
    only fall, until it stands still. Both start from the principal components.

    Lerman and Maunu 2018, "Fast, robust and non-convex subspace recovery", for the oracle; Maunu, Zhang and Lerman 2019
    (1706.03896), "A well-tempered landscape for non-convex robust subspace recovery", for why there is no other minimum
    near.
    """

    n: int = 20
    p: int = 3
    inliers: int = 120
    outliers: int = 60
    noise: float = 1e-2
    delta: float = 0.05
    seed: int = 0

    @functools.cached_property
    def planted(self) -> Tensor:
        """Basis of the subspace."""
        return torch.linalg.qr(randn(self.n, self.p, generator=self.generator))[0]

    @functools.cached_property
    def points(self) -> Tensor:
        """The y_i, one a column."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        inside = self.planted @ randn(self.p, self.inliers, generator=generator)
        inside = inside + self.noise * randn(self.n, self.inliers, generator=generator)
        # outliers favour a direction of their own, so that plain principal components are wrong
        outside = randn(self.n, self.outliers, generator=generator)
        outside[0] += self.n**0.5
        y = torch.cat([inside, outside], 1)
        return y / y.norm(dim=0)

    @property
    def manifold(self) -> Manifold:
        """Subspaces."""
        return Grassmann()

    @functools.cached_property
    def x0(self) -> Tensor:
        """The principal components."""
        return torch.linalg.svd(self.points, full_matrices=False)[0][:, : self.p].clone()

    def fun(self, x: Tensor) -> Tensor:
        """Mean of the smoothed distances."""
        y = self.points
        outside = (y - x @ (x.mT @ y)).square().sum(0)
        return ((outside + self.delta**2).sqrt() - self.delta).mean()

    @functools.cached_property
    def solution(self) -> np.ndarray:
        """By reweighted least squares."""
        y, x, last = self.points.numpy(), self.x0.numpy(), np.inf
        for _ in range(10000):
            outside = ((y - x @ (x.T @ y)) ** 2).sum(0)
            weights = 1 / np.sqrt(outside + self.delta**2)
            after = np.linalg.eigh((y * weights) @ y.T)[1][:, -self.p :]
            change = np.linalg.norm(after - x @ (x.T @ after))
            x = after
            if change < 1e-14 or change >= last < 1e-10:
                break
            last = change
        return x

    @functools.cached_property
    def optimum(self) -> float:
        """There."""
        x, y = self.solution, self.points.numpy()
        outside = ((y - x @ (x.T @ y)) ** 2).sum(0)
        return float(np.mean(np.sqrt(outside + self.delta**2) - self.delta))

    def error(self, x: Tensor) -> float:
        """Sine of the largest angle to the oracle's subspace."""
        u = torch.as_tensor(self.solution)
        return float(torch.linalg.matrix_norm(u - x @ (x.mT @ u), 2))

    @classmethod
    def tiny(cls) -> list[Example]:
        """In four and in eight dimensions."""
        return [cls(4, 1, 30, 10), cls(8, 2, 60, 20)]

    @classmethod
    def medium(cls) -> list[Example]:
        """In 200 dimensions, 3000 points."""
        return [cls(200, 5, 2000, 1000)]


if __name__ == "__main__":
    run(RobustSubspace())
