"""The relaxed problem of cutting a graph in two, in low-rank factors.

python examples/gallery/max_cut.py
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import numpy as np
import torch
from example import Example, run
from torch import Tensor

from steepest import Manifold, Oblique


@dataclasses.dataclass(frozen=True)
class MaxCut(Example):
    """Minimise -tr(X L X^T) / 4 over matrices X `(p, n)` with unit columns, L the Laplacian of a weighted graph.

    A cut is the case p = 1, signs; with X^T X for a positive semidefinite matrix of ones on its diagonal it is the
    relaxation of Goemans and Williamson 1995, at most 1 / 0.878 times the largest cut. With p (p + 1) / 2 > n there is
    no minimum but the global one (Boumal, Voroninski and Bandeira 2016, 1606.04970).

    Oracles: the dual problem, minimise sum_i y_i where S = Diag(y) - L / 4 is positive semidefinite, by an interior-
    point method in NumPy; its value is within n mu of both. And a proof at each solution: with y_i the diagonal of
    X^T X L / 4, S positive semidefinite shows that X is optimal.

    Burer and Monteiro 2003.
    """

    n: int = 20
    density: float = 0.5
    seed: int = 0

    @functools.cached_property
    def laplacian(self) -> Tensor:
        """L of a random graph with weights between zero and one."""
        generator = self.generator
        w = torch.rand(self.n, self.n, dtype=torch.float64, generator=generator)
        w = w * (torch.rand(self.n, self.n, generator=generator) < self.density)
        w = w.triu(1) + w.triu(1).mT
        return w.sum(0).diag() - w

    @property
    def rank(self) -> int:
        """p, the least one without other minima."""
        return math.floor((math.sqrt(8 * self.n + 1) - 1) / 2) + 1

    @property
    def manifold(self) -> Manifold:
        """Unit columns."""
        return Oblique()

    @functools.cached_property
    def x0(self) -> Tensor:
        """Random directions."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        return self.manifold.random_point((self.rank, self.n), dtype=torch.float64, generator=generator)

    def fun(self, x: Tensor) -> Tensor:
        """-tr(X L X^T) / 4."""
        return -(x * (x @ self.laplacian)).sum() / 4

    @functools.cached_property
    def optimum(self) -> float:
        """Minus the dual problem's, by Newton's method on sum y - mu log det S for mu going to zero. At its minimiser
        mu S^-1 is a point of the primal problem, whose value is n mu less."""
        c, mu = self.laplacian.numpy() / 4, 1.0
        y = np.full(self.n, 2 * np.linalg.eigvalsh(c)[-1])
        while True:
            for _ in range(100):
                inverse = np.linalg.inv(np.diag(y) - c)
                step = np.linalg.solve(mu * inverse**2, 1 - mu * np.diag(inverse))
                t = 1.0
                while np.linalg.eigvalsh(np.diag(y - t * step) - c)[0] <= 0:
                    t /= 2
                y = y - t * step
                if np.abs(step).max() < 1e-9 * mu:
                    break
            if self.n * mu < 1e-11:
                return -float(y.sum() - self.n * mu)
            mu /= 10

    def certificate(self, x: Tensor) -> float:
        """Least eigenvalue of S, relative to the largest; the solution is optimal where it is not negative."""
        c = self.laplacian / 4
        y = (x * (x @ c)).sum(0)
        eigenvalues = torch.linalg.eigvalsh(y.diag() - c)
        return float(eigenvalues[0] / eigenvalues[-1])

    def error(self, x: Tensor) -> float:
        """How negative the certificate is."""
        return max(0.0, -self.certificate(x))

    def cut(self, x: Tensor, tries: int = 100) -> float:
        """The best cut by random hyperplanes."""
        signs = (torch.randn(tries, len(x), dtype=x.dtype, generator=self.generator) @ x).sign()
        return float((signs * (signs @ self.laplacian)).sum(-1).max()) / 4

    def largest_cut(self) -> float:
        """By trying all 2^(n - 1)."""
        signs = torch.tensor(list(itertools.product([1.0, -1.0], repeat=self.n - 1)), dtype=torch.float64)
        signs = torch.cat([torch.ones(len(signs), 1, dtype=torch.float64), signs], 1)
        return float((signs * (signs @ self.laplacian)).sum(-1).max()) / 4

    @classmethod
    def tiny(cls) -> list[Example]:
        """Three and eight vertices."""
        return [cls(3, 1.0), cls(8)]

    @classmethod
    def medium(cls) -> list[Example]:
        """100 vertices."""
        return [cls(100)]


if __name__ == "__main__":
    example = MaxCut(14)
    result = run(example)
    print(
        f"least eigenvalue of the certificate {example.certificate(result.x):.1g}; relaxed {-result.value:.6f}, "
        f"largest cut {example.largest_cut():.6f}, by hyperplanes {example.cut(result.x):.6f}"
    )
