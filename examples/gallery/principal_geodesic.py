"""The geodesic nearest to images of digits, as covariance matrices of their pixels' features.

python examples/gallery/principal_geodesic.py
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import torch
from example import Example, run
from torch import Tensor

from steepest import SPD, Euclidean, Manifold, Product, Sphere


@dataclasses.dataclass(frozen=True)
class PrincipalGeodesic(Example):
    """Minimise the mean of d(Y_i, exp(M, t_i V))^2 / 2 over unit tangent vectors V at the mean M, and numbers t_i.

    Y_i is the covariance of intensity and absolute derivatives in both directions (region covariance, Tuzel, Porikli
    and Meer 2006) over the pixels of a handwritten digit of scikit-learn's. The geodesic through M along V then runs
    nearest to all of them, exactly so: principal components of the logarithms at M only approximate that, but where the
    metric is flat.

    Oracles: under "log-euclidean" the smaller eigenvalues of the logarithms' scatter matrix; under "affine-invariant"
    Gauss and Newton's method, SciPy's `least_squares`, on plain vectors.

    Fletcher, Lu, Pizer and Joshi 2004; Sommer, Lauze, Hauberg and Nielsen 2010, "Manifold valued statistics, exact
    principal geodesic analysis and the effect of linear approximations".
    """

    metric: str = "affine-invariant"
    images: int = 24
    seed: int = 0

    @functools.cached_property
    def descriptors(self) -> Tensor:
        """The Y_i, `(images, 3, 3)`."""
        from sklearn.datasets import load_digits

        intensity = load_digits().images[self.seed * self.images :][: self.images] / 16
        features = [intensity, *(np.abs(d) for d in np.gradient(intensity, axis=(1, 2)))]
        x = torch.tensor(np.stack(features, -1)).reshape(self.images, -1, 3)
        x = x - x.mean(1, keepdim=True)
        return x.mT @ x / x.shape[1]

    @functools.cached_property
    def spd(self) -> SPD:
        """Where they live."""
        return SPD(self.metric)

    @functools.cached_property
    def mean(self) -> Tensor:
        """M."""
        return self.spd.mean(self.descriptors)

    @property
    def manifold(self) -> Manifold:
        """Unit vectors of the six coordinates of V, and the t_i."""
        return Product((Sphere(), Euclidean(1)))

    @functools.cached_property
    def logs(self) -> Tensor:
        """Coordinates of the logarithms of the Y_i at M, `(images, 6)`."""
        v = self.spd.log(self.mean.expand_as(self.descriptors), self.descriptors)
        h = self.spd.coords(self.mean.expand_as(v), v)
        return h[:, _ROWS, _COLUMNS] * _SCALE

    @functools.cached_property
    def x0(self) -> tuple[Tensor, Tensor]:
        """Towards the first of them, with its projections onto that line."""
        v = self.logs[0] / self.logs[0].norm()
        return v, self.logs @ v

    def fun(self, x: tuple[Tensor, Tensor]) -> Tensor:
        """Half the mean of the squared distances."""
        v, t = x
        base = self.mean.expand(self.images, 3, 3)
        points = self.spd.exp(base, self.spd.push(base, t[:, None, None] * _symmetric(v)))
        return self.spd.dist(points, self.descriptors).square().mean() / 2

    @functools.cached_property
    def solution(self) -> tuple[float, np.ndarray]:
        """The least value, and the direction V."""
        x = self.logs.numpy()
        eigenvalues, vectors = np.linalg.eigh(x.T @ x)
        if self.metric == "log-euclidean":
            return float(eigenvalues[:-1].sum()) / (2 * self.images), vectors[:, -1]
        return self._gauss_newton(vectors[:, -1], x @ vectors[:, -1])

    def _gauss_newton(self, v: np.ndarray, t: np.ndarray) -> tuple[float, np.ndarray]:
        """The residuals are logarithms of exp(-t_i V / 2) W_i exp(-t_i V / 2), W_i as seen from M."""
        from scipy.optimize import least_squares

        root = np.linalg.inv(np.linalg.cholesky(self.mean.numpy()))
        whitened = root @ self.descriptors.numpy() @ root.T

        def residuals(z: np.ndarray) -> np.ndarray:
            h = _symmetric(torch.as_tensor(z[:6])).numpy()
            half = _function(np.exp, -z[6:, None, None] / 2 * h)
            logs = _function(np.log, half @ whitened @ half)
            return (logs[:, _ROWS, _COLUMNS] * _SCALE.numpy()).ravel()

        found = least_squares(residuals, np.concatenate([v, t]), xtol=1e-15, ftol=1e-15, gtol=1e-12, jac="3-point")
        return float(found.cost) / self.images, found.x[:6] / np.linalg.norm(found.x[:6])

    @property
    def optimum(self) -> float:
        """There."""
        return self.solution[0]

    def error(self, x: tuple[Tensor, Tensor]) -> float:
        """Sine of the angle between the directions."""
        v, u = x[0].numpy(), self.solution[1]
        return float(np.linalg.norm(v - u * (u @ v)))

    @classmethod
    def tiny(cls) -> list[Example]:
        """Six images under each metric."""
        return [cls("log-euclidean", 6), cls("affine-invariant", 6)]

    @classmethod
    def medium(cls) -> list[Example]:
        """100 images."""
        return [cls("affine-invariant", 100)]


_ROWS, _COLUMNS = np.triu_indices(3)
_SCALE = torch.as_tensor(np.where(_ROWS == _COLUMNS, 1, np.sqrt(2)))


def _symmetric(v: Tensor) -> Tensor:
    """The matrix of the six orthonormal coordinates."""
    half = v.new_zeros(3, 3).index_put((torch.as_tensor(_ROWS), torch.as_tensor(_COLUMNS)), v / _SCALE)
    return half + half.mT - half.diagonal().diag()


def _function(f, x: np.ndarray) -> np.ndarray:
    w, q = np.linalg.eigh(x)
    return (q * f(w)[..., None, :]) @ np.swapaxes(q, -1, -2)


if __name__ == "__main__":
    run(PrincipalGeodesic())
