"""An orthogonal matrix that makes several symmetric matrices as diagonal as can be.

python examples/gallery/joint_diagonalization.py
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import torch
from example import Example, randn, run
from torch import Tensor

from steepest import Manifold, Orthogonal


@dataclasses.dataclass(frozen=True)
class JointDiagonalization(Example):
    """Minimise half the mean over k of the sum of squares of the off-diagonal entries of X^T C_k X, over orthogonal X.

    C_k = Q D_k Q^T plus noise, with a planted Q. Without noise the minimum is zero, at Q's columns in any order.
    Independent components are separated so, from cumulants or from lagged covariances. Oracle: Jacobi's method in
    NumPy, rotations of two columns at a time, each by the best angle, until all angles vanish.

    Cardoso and Souloumiac 1996, "Jacobi angles for simultaneous diagonalization".
    """

    n: int = 6
    k: int = 8
    noise: float = 1e-2
    seed: int = 0

    @functools.cached_property
    def planted(self) -> Tensor:
        """Q."""
        return torch.linalg.qr(randn(self.n, self.n, generator=self.generator))[0]

    @functools.cached_property
    def matrices(self) -> Tensor:
        """The C_k, `(k, n, n)`."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        d = randn(self.k, 1, self.n, generator=generator)
        noise = self.noise * randn(self.k, self.n, self.n, generator=generator)
        return (self.planted * d) @ self.planted.mT + (noise + noise.mT) / 2

    @property
    def manifold(self) -> Manifold:
        """Orthogonal matrices."""
        return Orthogonal()

    @functools.cached_property
    def x0(self) -> Tensor:
        """Random."""
        generator = torch.Generator().manual_seed(self.seed + 2)
        return self.manifold.random_point((self.n, self.n), dtype=torch.float64, generator=generator)

    def fun(self, x: Tensor) -> Tensor:
        """Half the sum of squares off the diagonals, divided by how many matrices there are."""
        y = x.mT @ self.matrices @ x
        off = y - y.diagonal(dim1=-2, dim2=-1).diag_embed()
        return off.square().sum() / (2 * self.k)

    @functools.cached_property
    def solution(self) -> np.ndarray:
        """By Jacobi's method. The best rotation of two columns is the dominant eigenvector of a 2 x 2 matrix."""
        c, x = self.matrices.numpy().copy(), np.eye(self.n)
        for _ in range(100):
            largest = 0.0
            for i in range(self.n):
                for j in range(i + 1, self.n):
                    h = np.stack([c[:, i, i] - c[:, j, j], 2 * c[:, i, j]])
                    g = h @ h.T
                    turn = 0.5 * np.arctan2(2 * g[0, 1], g[0, 0] - g[1, 1])  # of the direction in the plane of h
                    angle = turn / 2
                    r = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
                    c[:, [i, j], :] = r.T @ c[:, [i, j], :]
                    c[:, :, [i, j]] = c[:, :, [i, j]] @ r
                    x[:, [i, j]] = x[:, [i, j]] @ r
                    largest = max(largest, abs(angle))
            if largest < 1e-14:
                break
        return x

    @functools.cached_property
    def optimum(self) -> float:
        """There."""
        x = self.solution
        y = x.T @ self.matrices.numpy() @ x
        return float((y**2).sum() - (np.diagonal(y, axis1=-2, axis2=-1) ** 2).sum()) / (2 * self.k)

    def error(self, x: Tensor) -> float:
        """Distance to the oracle's columns, whatever their order and signs."""
        overlap = (x.mT @ torch.as_tensor(self.solution)).abs()
        return float((overlap.square() - overlap.round()).abs().max())

    @classmethod
    def tiny(cls) -> list[Example]:
        """3 x 3, 4 x 4."""
        return [cls(3, 4), cls(4, 6, 0.0)]

    @classmethod
    def medium(cls) -> list[Example]:
        """20 of 30 x 30."""
        return [cls(30, 20)]


if __name__ == "__main__":
    run(JointDiagonalization())
