"""The Gaussian nearest to several ones in optimal transport.

python examples/gallery/gaussian_barycenter.py
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import torch
from example import Example, randn, random_spd, run
from torch import Tensor

from steepest import SPD, Euclidean, Manifold, Product


@dataclasses.dataclass(frozen=True)
class GaussianBarycenter(Example):
    """Minimise sum_i w_i W_2(N(m, X), N(m_i, Y_i))^2 / 2 over Gaussians: vectors m, positive definite X.

    W_2^2 is |m - m_i|^2 plus the squared Bures-Wasserstein distance of X and Y_i, so that the product of a Euclidean
    space with `SPD("bures-wasserstein")` is the manifold of Gaussians under optimal transport. Oracle, in NumPy: m is
    the weighted mean of the m_i, and X the limit of X <- X^(-1/2) (sum_i w_i (X^(1/2) Y_i X^(1/2))^(1/2))^2 X^(-1/2).

    Agueh and Carlier 2011; Alvarez-Esteban, del Barrio, Cuesta-Albertos and Matran 2016 (1511.05355), theorem 4.2.
    """

    k: int = 6
    n: int = 5
    condition: float = 100.0
    seed: int = 0

    @functools.cached_property
    def covariances(self) -> Tensor:
        """The Y_i, `(k, n, n)`."""
        return random_spd(self.k, self.n, self.condition, self.generator)

    @functools.cached_property
    def means(self) -> Tensor:
        """The m_i, `(k, n)`."""
        return randn(self.k, self.n, generator=torch.Generator().manual_seed(self.seed + 1))

    @functools.cached_property
    def weights(self) -> Tensor:
        """The w_i, in the ratio 1 : 2 : ... : k."""
        w = torch.arange(1, self.k + 1, dtype=torch.float64)
        return w / w.sum()

    @property
    def manifold(self) -> Manifold:
        """Mean and covariance."""
        return Product((Euclidean(1), SPD("bures-wasserstein")))

    @functools.cached_property
    def x0(self) -> tuple[Tensor, Tensor]:
        """The standard Gaussian."""
        return torch.zeros(self.n, dtype=torch.float64), torch.eye(self.n, dtype=torch.float64)

    def fun(self, x: tuple[Tensor, Tensor]) -> Tensor:
        """Half the weighted sum of the squared distances."""
        m, s = x
        squares = (m - self.means).square().sum(-1) + SPD("bures-wasserstein").dist(s, self.covariances).square()
        return (self.weights * squares).sum() / 2

    @functools.cached_property
    def solution(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of the barycentre."""
        y, w = self.covariances.numpy(), self.weights.numpy()
        x, last = np.tensordot(w, y, 1), np.inf
        for _ in range(1000):
            root, inverse = _power(x, 0.5), _power(x, -0.5)
            middle = np.tensordot(w, _power(root @ y @ root, 0.5), 1)
            after = inverse @ middle @ middle @ inverse
            x, change = after, np.linalg.norm(after - x) / np.linalg.norm(x)
            if change < 1e-14 or change >= last < 1e-10:
                break
            last = change
        return w @ self.means.numpy(), x

    @functools.cached_property
    def optimum(self) -> float:
        """There, where sum_i w_i (X^(1/2) Y_i X^(1/2))^(1/2) = X: half of sum_i w_i (|m - m_i|^2 + tr Y_i) - tr X."""
        m, x = self.solution
        w, means = self.weights.numpy(), self.means.numpy()
        spread = ((means - m) ** 2).sum(-1) + np.trace(self.covariances.numpy(), axis1=-2, axis2=-1)
        return float(w @ spread - np.trace(x)) / 2

    def error(self, x: tuple[Tensor, Tensor]) -> float:
        """Relative distance of mean and covariance."""
        parts = [np.linalg.norm(a.numpy() - b) / np.linalg.norm(b) for a, b in zip(x, self.solution, strict=True)]
        return float(max(parts))

    @classmethod
    def tiny(cls) -> list[Example]:
        """In the plane and in space."""
        return [cls(3, 2, 10.0), cls(4, 3, 10.0)]

    @classmethod
    def medium(cls) -> list[Example]:
        """20 of 20 dimensions."""
        return [cls(20, 20)]


def _power(x: np.ndarray, p: float) -> np.ndarray:
    w, q = np.linalg.eigh(x)
    return (q * (w**p)[..., None, :]) @ np.swapaxes(q, -1, -2)


if __name__ == "__main__":
    run(GaussianBarycenter())
