"""Means of positive definite matrices under three metrics.

python examples/gallery/spd_mean.py
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import torch
from example import Example, random_spd, run
from torch import Tensor

from steepest import SPD, Manifold


@dataclasses.dataclass(frozen=True)
class SPDMean(Example):
    """Minimise the mean of d(X, Y_i)^2 / 2 over positive definite X, for k given matrices.

    | metric | oracle, in NumPy |
    |---|---|
    | "affine-invariant" | X <- X^(1/2) exp(mean log X^(-1/2) Y_i X^(-1/2)) X^(1/2), until it stands still |
    | "bures-wasserstein" | X <- X^(-1/2) (mean (X^(1/2) Y_i X^(1/2))^(1/2))^2 X^(-1/2) |
    | "log-euclidean" | exp(mean log Y_i), in closed form |

    Each has one minimum, and no other critical point.

    Moakher 2005 and Bhatia and Holbrook 2006, the affine-invariant mean; Alvarez-Esteban, del Barrio, Cuesta-Albertos
    and Matran 2016 (1511.05355), the second iteration; Arsigny, Fillard, Pennec and Ayache 2007, the log-Euclidean one.
    """

    metric: str = "affine-invariant"
    k: int = 10
    n: int = 6
    condition: float = 1e3
    seed: int = 0

    @functools.cached_property
    def points(self) -> Tensor:
        """The Y_i, `(k, n, n)`."""
        return random_spd(self.k, self.n, self.condition, self.generator)

    @functools.cached_property
    def manifold(self) -> Manifold:
        """Positive definite matrices under the metric."""
        return SPD(self.metric)

    @functools.cached_property
    def x0(self) -> Tensor:
        """The identity."""
        return torch.eye(self.n, dtype=torch.float64)

    def fun(self, x: Tensor) -> Tensor:
        """Mean of the squared distances, halved."""
        return self.manifold.dist(x, self.points).square().mean() / 2

    @functools.cached_property
    def solution(self) -> np.ndarray:
        """By the iteration or formula of the table."""
        y = self.points.numpy()
        if self.metric == "log-euclidean":
            return _function(np.exp, _function(np.log, y).mean(0))
        step = {"affine-invariant": _karcher, "bures-wasserstein": _bures_wasserstein}[self.metric]
        x, last = y.mean(0), np.inf
        for _ in range(1000):
            after = step(x, y)
            x, change = after, np.linalg.norm(after - x) / np.linalg.norm(x)
            if change < 1e-13 or change >= last < 1e-9:
                break
            last = change
        return x

    @functools.cached_property
    def optimum(self) -> float:
        """Of distances in NumPy."""
        x, y = self.solution, self.points.numpy()
        return float(np.mean(_SQUARED[self.metric](x, y))) / 2

    def error(self, x: Tensor) -> float:
        """Relative distance to the oracle's mean."""
        return float(np.linalg.norm(x.numpy() - self.solution) / np.linalg.norm(self.solution))

    @classmethod
    def tiny(cls) -> list[Example]:
        """Of 2 x 2 four, of 3 x 3 five, under each metric."""
        return [cls(metric, k, n, 30.0) for metric in _SQUARED for k, n in ((4, 2), (5, 3))]

    @classmethod
    def medium(cls) -> list[Example]:
        """Of 20 x 20 twenty, under each metric."""
        return [cls(metric, 20, 20, 1e2) for metric in _SQUARED]


def _function(f, x: np.ndarray) -> np.ndarray:
    w, q = np.linalg.eigh(x)
    return (q * f(w)[..., None, :]) @ np.swapaxes(q, -1, -2)


def _roots(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return _function(np.sqrt, x), _function(lambda w: w**-0.5, x)


def _karcher(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    root, inverse = _roots(x)
    return root @ _function(np.exp, _function(np.log, inverse @ y @ inverse).mean(0)) @ root


def _bures_wasserstein(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    root, inverse = _roots(x)
    middle = _function(np.sqrt, root @ y @ root).mean(0)
    return inverse @ middle @ middle @ inverse


def _affine_invariant(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    inverse = _roots(x)[1]
    return (np.log(np.linalg.eigvalsh(inverse @ y @ inverse)) ** 2).sum(-1)


def _wasserstein(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    root = _roots(x)[0]
    cross = np.sqrt(np.linalg.eigvalsh(root @ y @ root)).sum(-1)
    return np.trace(x) + np.trace(y, axis1=-2, axis2=-1) - 2 * cross


def _log_euclidean(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return ((_function(np.log, x) - _function(np.log, y)) ** 2).sum((-2, -1))


_SQUARED = {"affine-invariant": _affine_invariant, "bures-wasserstein": _wasserstein, "log-euclidean": _log_euclidean}

if __name__ == "__main__":
    run(SPDMean())
