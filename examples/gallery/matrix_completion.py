"""A matrix of low rank from some of its entries.

python examples/gallery/matrix_completion.py
"""

from __future__ import annotations

import dataclasses
import functools

import torch
from example import Example, run
from torch import Tensor

from steepest import FixedRankEmbedded, Manifold


@dataclasses.dataclass(frozen=True)
class MatrixCompletion(Example):
    """Minimise half the mean of (W_ij - A_ij)^2 over known entries (i, j), among matrices W of rank r.

    A holds images of handwritten digits, one a row (scikit-learn's, from the UCI repository; 64 pixels), less what does
    not fit into rank r, so that the minimum is zero, and with enough entries at A alone. Oracle: A itself. Known are
    `oversampling` times as many entries as A has degrees of freedom, drawn at random. The start is the best matrix of
    rank r to the known entries scaled up, zeros elsewhere (Keshavan, Montanari and Oh 2010).

    Vandereycken 2013 (1209.3834).
    """

    images: int = 150
    rank: int = 4
    oversampling: float = 4.0
    seed: int = 0

    @functools.cached_property
    def a(self) -> Tensor:
        """The matrix, `(images, pixels)`: those of the 64 that differ between the images."""
        from sklearn.datasets import load_digits

        pixels = torch.tensor(load_digits().data[: self.images] / 16)
        u, s, vh = torch.linalg.svd(pixels[:, pixels.std(0) > 0.05], full_matrices=False)
        return (u[:, : self.rank] * s[: self.rank]) @ vh[: self.rank]

    @functools.cached_property
    def known(self) -> tuple[Tensor, Tensor]:
        """Row and column of the known entries."""
        m, n = self.a.shape
        count = min(round(self.oversampling * (m + n - self.rank) * self.rank), m * n)
        chosen = torch.randperm(m * n, generator=self.generator)[:count].sort()[0]
        return chosen // n, chosen % n

    @functools.cached_property
    def entries(self) -> Tensor:
        """Their values."""
        return self.a[self.known]

    @property
    def manifold(self) -> Manifold:
        """Matrices of fixed rank, U S V^T."""
        return FixedRankEmbedded()

    @functools.cached_property
    def x0(self) -> tuple[Tensor, Tensor, Tensor]:
        """The best approximation of what is known."""
        filled = torch.zeros_like(self.a)
        filled[self.known] = self.entries * self.a.numel() / len(self.entries)
        u, s, vh = torch.linalg.svd(filled, full_matrices=False)
        return u[:, : self.rank].clone(), s[: self.rank].diag(), vh[: self.rank].mT.clone()

    def fun(self, x: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Half the mean squared error on the known entries."""
        u, s, v = x
        rows, columns = self.known
        w = ((u @ s) @ v.mT)[rows, columns]
        return (w - self.entries).square().mean() / 2

    @property
    def optimum(self) -> float:
        """A itself has no error."""
        return 0.0

    def error(self, x: tuple[Tensor, Tensor, Tensor]) -> float:
        """Relative error on all entries, the unknown ones among them."""
        u, s, v = x
        return float((u @ s @ v.mT - self.a).norm() / self.a.norm())

    @classmethod
    def tiny(cls) -> list[Example]:
        """Of rank one and two."""
        return [cls(12, 1, 6.0), cls(30, 2, 3.0)]

    @classmethod
    def medium(cls) -> list[Example]:
        """1000 images."""
        return [cls(1000, 5, 4.0)]


if __name__ == "__main__":
    run(MatrixCompletion())
